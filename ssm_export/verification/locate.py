"""Which layer departs first: the states tell.

An error in one layer reaches every layer after it and none before, so the first state beyond its
gate, in the order of the network, names the place: the convolution's state of a layer holds what
enters its convolution, the ssm state what its scan has made of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ssm_export.verification.measure import LOGITS, Measurement, Place

_ORDER: Final = {"conv": 0, "ssm": 1, LOGITS: 2}


@dataclass(frozen=True)
class LayerError:
    """One line of the per-layer table: the worst of one tensor's measurements in one run."""

    run: str
    tensor: str
    layer: int
    measure: str
    error: float
    tolerance: float
    ok: bool

    def as_json(self) -> dict[str, Any]:
        """A JSON object; an error that is not finite is null."""
        return {
            "run": self.run,
            "tensor": self.tensor,
            "layer": self.layer,
            "measure": self.measure,
            "error": finite(self.error),
            "tolerance": self.tolerance,
            "ok": self.ok,
        }


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if abs(value) < float("inf") else None


def network_order(place: Place) -> tuple[int, int]:
    """Sorts places from the embedding to the logits."""
    return place.layer, _ORDER.get(place.kind, 1)


def layer_table(measurements: Sequence[Measurement]) -> tuple[LayerError, ...]:
    """The worst measurement of each tensor in the first run that fails (the first run if none)."""
    placed = [item for item in measurements if item.place is not None]
    if not placed:
        return ()
    run = next((item.run for item in placed if not item.ok), placed[0].run)
    worst: dict[Place, Measurement] = {}
    for item in placed:
        if item.run == run and item.place is not None:
            seen = worst.get(item.place)
            if seen is None or item.ratio > seen.ratio:
                worst[item.place] = item
    return tuple(
        LayerError(run, p.tensor, p.layer, item.measure, item.value, item.gate, item.ok)
        for p, item in sorted(worst.items(), key=lambda pair: network_order(pair[0]))
    )


def worst_outputs(measurements: Sequence[Measurement]) -> tuple[LayerError, ...]:
    """The worst of each measure of each tensor in all runs, from the embedding to the logits."""
    worst: dict[tuple[Place, str], Measurement] = {}
    for item in measurements:
        if item.place is not None:
            seen = worst.get((item.place, item.measure))
            if seen is None or item.ratio > seen.ratio:
                worst[item.place, item.measure] = item
    return tuple(
        LayerError(item.run, place.tensor, place.layer, measure, item.value, item.gate, item.ok)
        for (place, measure), item in sorted(
            worst.items(), key=lambda pair: (network_order(pair[0][0]), pair[0][1])
        )
    )


def first_departure(measurements: Sequence[Measurement]) -> str:
    """One sentence that names the first tensor beyond its gate, and what lies before it."""
    table = layer_table(measurements)
    bad = next((line for line in table if not line.ok), None)
    if bad is None:
        return ""
    place = next(m.place for m in measurements if m.place and m.place.tensor == bad.tensor)
    has_states = any(line.tensor != LOGITS for line in table)
    return f"{bad.run}: {bad.tensor} departs first, {_between(place, has_states)}"


def _between(place: Place, has_states: bool) -> str:
    layer = place.layer
    if place.kind == LOGITS:
        if not has_states:
            return "its states were not compared"
        return f"after the scan of layer {layer - 1} (the last), or in the last norm or the head"
    if place.kind == "conv":
        before = "the embedding" if layer == 0 else f"layer {layer - 1} after its scan"
        return f"before the convolution of layer {layer}: {before}, or layer {layer}'s projection"
    return f"inside layer {layer}, from its convolution to its scan"
