"""Errors as numbers: what is measured, per batch row, and against which gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

LOGITS: Final = "logits"


@dataclass(frozen=True)
class Place:
    """Where in the network a tensor stands.

    Attributes:
        tensor: its name, such as ``past_ssm.3`` or ``logits``.
        kind: ``conv``, ``ssm`` or ``logits``.
        layer: the layer of a state; the number of layers for logits, so places sort by it.
        depth: how many layers the value has passed through.
    """

    tensor: str
    kind: str
    layer: int
    depth: int


@dataclass(frozen=True)
class Measurement:
    """One number held against one gate.

    Attributes:
        run: what was run, such as ``prefill of 64 tokens``.
        place: the tensor, or None where the number is not about one.
        measure: ``nmse``; ``element/gate``, an element's error as a share of what it may be;
            ``relative L2``; ``disagreements``; ``shape``.
        value: the number; NaN and Inf in a result make it infinite.
        gate: the largest value that passes.
        where: the worst element or row, in words.
    """

    run: str
    place: Place | None
    measure: str
    value: float
    gate: float
    where: str = ""

    @property
    def ratio(self) -> float:
        """Value over gate: passes at or below one."""
        if self.gate > 0:
            return self.value / self.gate
        return 0.0 if self.value == 0 else math.inf

    @property
    def ok(self) -> bool:
        return self.value <= self.gate


def squared_error(got: np.ndarray, want: np.ndarray) -> tuple[float, int]:
    """The worst row's normalised mean-square error Σ(y−r)² / Σr² and that row.

    ``got`` and ``want`` are (B, …) of one shape. A row of zeros in ``want`` must be zeros in
    ``got``. A value that is not finite makes the error infinite.
    """
    worst, at = 0.0, 0
    for row in range(got.shape[0]):
        truth = want[row].astype(np.float64).ravel()
        difference = got[row].astype(np.float64).ravel() - truth
        error, power = float(difference @ difference), float(truth @ truth)
        value = (error / power if power > 0 else math.inf) if error != 0 else 0.0
        value = value if math.isfinite(value) else math.inf
        if value > worst:
            worst, at = value, row
    return worst, at


def element_error(
    got: np.ndarray, want: np.ndarray, relative: float, absolute: float
) -> tuple[float, tuple[int, ...]]:
    """The worst ``|y − r| / (relative·|r| + absolute·RMS(r))``, RMS of the batch row, and where.

    Passes at or below one. ``got`` and ``want`` are (B, …) of one shape.
    """
    worst, at = 0.0, (0,) * got.ndim
    for row in range(got.shape[0]):
        truth = want[row].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            difference = np.abs(got[row].astype(np.float64) - truth)
            allowed = relative * np.abs(truth) + absolute * rms(truth)
            excess = np.where(difference == 0, 0.0, difference / allowed)
        excess = np.where(np.isfinite(excess), excess, math.inf)
        flat = int(excess.argmax())
        if (value := float(excess.ravel()[flat])) > worst:
            worst, at = value, (row, *(int(i) for i in np.unravel_index(flat, excess.shape)))
    return worst, at


def rms(values: np.ndarray) -> float:
    """Root mean square, in float64."""
    flat = values.astype(np.float64).ravel()
    return float(np.sqrt(flat @ flat / max(flat.size, 1)))
