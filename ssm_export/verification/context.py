"""What every check is given: the model, the truth, the gates, and ways to compare them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ssm_export.bundle import SSM_SCALE, Manifest
from ssm_export.engines.runner import Arrays, Recurrent
from ssm_export.progress import Progress
from ssm_export.verification import feeding
from ssm_export.verification.gates import SIGMAS, Gates
from ssm_export.verification.measure import (
    LOGITS,
    Measurement,
    Place,
    element_error,
    squared_error,
)
from ssm_export.verification.rounding import MARGIN, floor_of, seen_by
from ssm_export.verification.truth import Case, Truth


@dataclass(frozen=True)
class CurvePoint:
    """How far the worst tensor is off after so many steps: ``relative L2``, and which it is."""

    steps: int
    error: float
    tensor: str


@dataclass(frozen=True)
class Outcome:
    """What a check measured, what there is to say about it, and a curve where it has one."""

    measurements: list[Measurement]
    detail: str = ""
    curve: tuple[CurvePoint, ...] = ()


def layers_of(manifest: Manifest) -> int:
    """L: the number of layers."""
    counted = max((state.layer for state in manifest.states), default=-1) + 1
    return max(counted, manifest.sizes.get("L", 0), manifest.sizes.get("num_hidden_layers", 0))


def gates_of(manifest: Manifest) -> Gates:
    """The gates that a bundle is held to."""
    return Gates(manifest.precision, manifest.state_dtype, layers_of(manifest))


class Context:
    """A loaded bundle beside its truth."""

    def __init__(self, model: Recurrent, truth: Truth, progress: Progress) -> None:
        self.model = model
        self.truth = truth
        self.progress = progress
        self.manifest = model.bundle.manifest
        self.gates = gates_of(self.manifest)
        self.rounding = seen_by(self.manifest.rounding, model.runner.info.name)
        self.places = {
            state.name_in: Place(state.name_in, state.kind, state.layer, state.layer + 1)
            for state in self.manifest.states
            if state.kind != SSM_SCALE
        }
        self.logits_place = Place(LOGITS, LOGITS, self.gates.layers, self.gates.layers)

    @property
    def all_positions(self) -> bool:
        """Whether the prefill graph gives the logits of every position."""
        return self.manifest.logits == "all"

    @cached_property
    def prompt(self) -> Case:
        """The prompt whose logits at every position and whose states are known."""
        return self.truth.case("prefill")

    @cached_property
    def whole(self) -> tuple[np.ndarray, Arrays]:
        """Logits and states of the whole prompt in one prefill."""
        return feeding.prefill(self.model, self.prompt.input_ids)

    @cached_property
    def stepped(self) -> tuple[np.ndarray, Arrays]:
        """Logits and states of the prompt with its last token by the step graph."""
        ids = self.prompt.input_ids
        _, state = feeding.prefill(self.model, ids[:, :-1])
        return self.model.step(ids[:, -1:], state)

    def true_logits(self, tokens: int) -> np.ndarray | None:
        """The truth's logits (B,1,V) after the first ``tokens`` tokens of the prompt; None where
        they are not known, as a large vocabulary has only those of the last token recorded."""
        logits, length = self.prompt.logits, self.prompt.input_ids.shape[1]
        if logits is None:
            return None
        if tokens == length:
            return logits[:, -1:]
        return logits[:, tokens - 1 : tokens] if logits.shape[1] == length else None

    def logits_agree(
        self, run: str, got: np.ndarray, want: np.ndarray | None, kind: str = "prefill"
    ) -> list[Measurement]:
        """Logits against the truth: both gates, with the rounding of a kind of case. Nothing where
        the truth has none."""
        if want is None:
            return []
        return self._agree(run, self.logits_place, got, want, kind)

    def states_agree(
        self,
        run: str,
        got: Mapping[str, np.ndarray],
        want: Mapping[str, np.ndarray],
        kind: str = "prefill",
    ) -> list[Measurement]:
        """Every state that the truth has, against it: both gates, with the rounding of a kind of
        case. Recorded vectors have all."""
        got = self.model.real_states(got)
        found: list[Measurement] = []
        for name, place in self.places.items():
            if name in want:
                found += self._agree(run, place, got[name], want[name], kind)
            elif self.truth.name == "parity":
                missing = Measurement(run, place, "nmse", math.inf, 0.0, f"{name} is not recorded")
                found.append(missing)
        return found

    def _agree(
        self, run: str, place: Place, got: np.ndarray, want: np.ndarray, kind: str
    ) -> list[Measurement]:
        if got.shape != want.shape:
            return [wrong_shape(run, place, got, want)]
        floor = floor_of(self.rounding, kind, place.tensor)
        allowed = max(self.gates.nmse(place.depth), MARGIN**2 * floor.nmse)
        mean, row = squared_error(got, want)
        relative, absolute = self.gates.element(place.depth)
        # The largest error of one run is one draw, and mostly that of the largest elements.
        relative = max(relative, SIGMAS * math.sqrt(floor.nmse))
        absolute = max(absolute, MARGIN * floor.element)
        worst, index = element_error(got, want, relative, absolute)
        at = ", ".join(str(i) for i in index)
        named = place.tensor
        return [
            Measurement(run, place, "nmse", mean, allowed, f"row {row}"),
            Measurement(run, place, "element/gate", worst, 1.0, f"{named}[{at}]"),
        ]

    def same(
        self,
        run: str,
        got: tuple[np.ndarray, Mapping[str, np.ndarray]],
        want: tuple[np.ndarray, Mapping[str, np.ndarray]],
        gate: Callable[[int], float],
        kind: str = "prefill",
    ) -> list[Measurement]:
        """Logits of the last token and every state of ``want`` as a relative L2 error.

        Args:
            got: logits (B,…,V) and states of one way to run the graphs.
            want: of another, or the truth's.
            gate: depth to the gate.
            kind: the kind of case whose rounding counts.
        """
        one_way, other_way = (self.model.real_states(result[1]) for result in (got, want))
        pairs = [(self.places[name], one_way[name], value) for name, value in other_way.items()]
        pairs.append((self.logits_place, got[0][:, -1:], want[0][:, -1:]))
        found: list[Measurement] = []
        for place, one, other in pairs:
            if one.shape != other.shape:
                found.append(wrong_shape(run, place, one, other))
                continue
            square, row = squared_error(one, other)
            value, at = math.sqrt(square), f"row {row}"
            floor = floor_of(self.rounding, kind, place.tensor)
            allowed = max(gate(place.depth), MARGIN * math.sqrt(floor.nmse))
            found.append(Measurement(run, place, "relative L2", value, allowed, at))
        return found

    def unchanged(
        self, run: str, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]
    ) -> list[Measurement]:
        """Every state to the bit, the scales of an int8 state too."""
        return [
            Measurement(
                run,
                self.places.get(state.name_in),
                "changed values",
                float(np.count_nonzero(got[state.name_in] != want[state.name_in])),
                0.0,
                state.name_in,
            )
            for state in self.manifest.states
        ]

    def near_tie(self, scale: float) -> float:
        """The margin top1 − top2 below which either token is right; ``scale``: RMS of logits."""
        floor = floor_of(self.rounding, "prefill", LOGITS)
        return max(self.gates.near_tie(scale), 2 * MARGIN * floor.element * scale)


def wrong_shape(run: str, place: Place, got: np.ndarray, want: np.ndarray) -> Measurement:
    """The measurement of a result that has the wrong shape."""
    where = f"{place.tensor} is {got.shape}, expected {want.shape}"
    return Measurement(run, place, "shape", math.inf, 0.0, where)


def rows_of(states: Mapping[str, np.ndarray], rows: np.ndarray | slice) -> Arrays:
    """Some batch rows of every state."""
    return {name: value[rows] for name, value in states.items()}
