"""What one sample of a device says, and the curve that the power of many samples makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

FEWEST_SAMPLES: Final = 5
"""Samples that must fall into the timed intervals before an energy is given: with fewer, what is
between them is a guess."""


@dataclass(frozen=True)
class Reading:
    """One sample.

    Attributes:
        rails_w: power by rail, in watts.
        temperatures_c: by sensor, in °C.
        clocks_mhz: by unit (``gpu``, ``memory``, ``cpu``), in MHz; a gated unit is left out.
        gpu_load: share of the time that the GPU worked; None where it is not said.
        ram_mb: memory in use, in MB.
        reasons: why clocks are held down, as the driver says it.
    """

    rails_w: Mapping[str, float] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    gpu_load: float | None = None
    ram_mb: float | None = None
    reasons: tuple[str, ...] = ()


def energy_j(
    times_s: Sequence[float],
    powers_w: Sequence[float],
    intervals: Sequence[tuple[float, float]],
) -> float | None:
    """The integral of a sampled power over some intervals.

    The power is taken as linear between two samples, and as the nearest sample's before the first
    and after the last.

    Args:
        times_s: when each sample was taken, ascending.
        powers_w: the power of each, in watts.
        intervals: (begin, end) on the same clock.

    Returns:
        joules; None with fewer than :data:`FEWEST_SAMPLES` samples inside the intervals.
    """
    import numpy as np

    times = np.asarray(times_s, dtype=np.float64)
    powers = np.asarray(powers_w, dtype=np.float64)
    inside = sum(int(((times >= begin) & (times <= end)).sum()) for begin, end in intervals)
    if inside < FEWEST_SAMPLES:
        return None
    total = 0.0
    for begin, end in intervals:
        between = times[(times > begin) & (times < end)]
        at = np.concatenate([[begin], between, [end]])
        heights = np.interp(at, times, powers)
        total += float(((heights[1:] + heights[:-1]) / 2 * np.diff(at)).sum())
    return total
