"""The one interface of every runtime: load a bundle's two graphs, run them on named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, cast

import numpy as np

from ssm_export.bundle import SSM, SSM_SCALE, Bundle, StateSpec

Arrays = dict[str, np.ndarray]
_STATE_TYPES: Final = {"float16": np.float16, "int8": np.int8}
"""Types of states in numpy; float32 where they are not listed."""


@dataclass(frozen=True)
class RunnerInfo:
    """What a runner is, for reports: its name, versions, device, and the lowering it runs."""

    name: str
    versions: dict[str, str]
    device: str
    lowering: str


def state_type(spec: StateSpec) -> np.dtype:
    """The numpy type in which a state is fed and given; bfloat16 travels as float32."""
    return np.dtype(_STATE_TYPES.get(spec.dtype, np.float32))


class Runner(Protocol):
    """A loaded bundle that can be run.

    ``run`` takes and gives every tensor by its graph name. A float tensor that numpy has no type
    for (bfloat16) travels as float32 that holds bfloat16 values; the runner converts.
    """

    info: RunnerInfo

    def run(self, form: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Run the ``step`` or ``prefill`` graph once.

        Args:
            form: ``step`` or ``prefill``.
            feeds: ``input_ids (B,T)`` int64, ``sequence_lengths (B,)`` int32 when the bundle is
                ragged, and every past state.

        Returns:
            ``logits`` (B,1,V) or (B,T,V), and every present state.
        """
        ...

    def close(self) -> None:
        """Free the runtime's memory."""
        ...


class Recurrent:
    """A runner with its states threaded through: what verify, bench and generate use.

    Args:
        bundle: the open bundle.
        runner: a runner that loaded it.
    """

    def __init__(self, bundle: Bundle, runner: Runner) -> None:
        self.bundle = bundle
        self.runner = runner
        self.states: tuple[StateSpec, ...] = bundle.manifest.states

    def initial_state(self, batch: int) -> Arrays:
        """The state before the first token: ``past_*`` arrays for ``batch`` rows."""
        return {
            state.name_in: np.full(
                tuple(size if isinstance(size, int) else batch for size in state.shape),
                state.initial_value,
                dtype=state_type(state),
            )
            for state in self.states
        }

    def real_states(self, state: Mapping[str, np.ndarray]) -> Arrays:
        """The states as numbers: int8 codes times their scales, float32; the scales are left out.

        States that are numbers already stay as they are, so the truth's may be given too.
        """
        scales = {spec.layer: spec.name_in for spec in self.states if spec.kind == SSM_SCALE}
        real: Arrays = {}
        for spec in self.states:
            if spec.name_in not in state or spec.kind == SSM_SCALE:
                continue
            values = state[spec.name_in]
            if spec.kind == SSM and values.dtype == np.int8:
                scale = state[scales[spec.layer]]
                blocks = values.reshape(*scale.shape, -1).astype(np.float32)
                values = (blocks * scale[..., None]).reshape(values.shape)
            real[spec.name_in] = values
        return real

    def run(
        self,
        form: str,
        input_ids: np.ndarray,
        state: Mapping[str, np.ndarray],
        lengths: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Arrays]:
        """Run one graph.

        Args:
            form: ``step`` (T=1) or ``prefill``.
            input_ids: (B,T) integers.
            state: the ``past_*`` arrays.
            lengths: (B,) valid tokens of each row; only for ragged bundles, all T when left out.

        Returns:
            logits as float32 or float16, and the new state under its ``past_*`` names.
        """
        feeds: Arrays = {"input_ids": np.ascontiguousarray(input_ids, dtype=np.int64), **state}
        if self.bundle.manifest.ragged:
            rows, tokens = input_ids.shape
            full = np.full(rows, tokens) if lengths is None else lengths
            feeds["sequence_lengths"] = np.asarray(full, dtype=np.int32)
        outputs = self.runner.run(form, feeds)
        new_state = {spec.name_in: outputs[spec.name_out] for spec in self.states}
        return outputs["logits"], new_state

    def prefill(
        self,
        input_ids: np.ndarray,
        state: Mapping[str, np.ndarray] | None = None,
        lengths: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Arrays]:
        """Run the prefill graph; from the initial state when none is given."""
        start = self.initial_state(input_ids.shape[0]) if state is None else state
        return self.run("prefill", input_ids, start, lengths)

    def step(
        self,
        input_ids: np.ndarray,
        state: Mapping[str, np.ndarray],
        lengths: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Arrays]:
        """Run the step graph on one token per row: ``input_ids`` (B,1)."""
        return self.run("step", input_ids, state, lengths)


class Resident(Protocol):
    """A runner that can keep the states where it computes, so decoding copies only ids and logits.

    An addition to :class:`Runner` that a runner on another device has; ``run`` of such a runner is
    ``load_state``, ``advance`` and ``read_state`` in a row. It keeps one state, so whatever runs it
    meanwhile replaces that.
    """

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy every ``past_*`` array to the device."""
        ...

    def advance(
        self, form: str, input_ids: np.ndarray, lengths: np.ndarray | None = None
    ) -> np.ndarray:
        """Run a graph on the states that are there, leave the new ones there, give the logits."""
        ...

    def read_state(self) -> Arrays:
        """The states under their ``past_*`` names, copied from the device."""
        ...


class HostStates:
    """A :class:`Resident` of any runner: the arrays that it gives are what it is fed next.

    No array is written once it is there, so handing states in and out copies nothing.

    Args:
        model: the loaded bundle.
    """

    def __init__(self, model: Recurrent) -> None:
        self._model = model
        self._state: Mapping[str, np.ndarray] = {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Begin from these ``past_*`` arrays."""
        self._state = state

    def advance(
        self, form: str, input_ids: np.ndarray, lengths: np.ndarray | None = None
    ) -> np.ndarray:
        """Run a graph, keep the new states, give the logits."""
        logits, self._state = self._model.run(form, input_ids, self._state, lengths)
        return logits

    def read_state(self) -> Arrays:
        """The states under their ``past_*`` names."""
        return dict(self._state)


def resident(model: Recurrent) -> Resident:
    """The model's runner where it keeps states itself; otherwise one that keeps them here."""
    runner = model.runner
    if hasattr(runner, "advance") and hasattr(runner, "load_state"):
        return cast(Resident, runner)
    return HostStates(model)
