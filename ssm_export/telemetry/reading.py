"""What one sample of a device says, and the curve that the power of many samples makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

FEWEST_SAMPLES: Final = 5
"""Samples that must fall into an interval before its energy is given: with fewer, what is between
them is a guess."""


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
    times_s: Sequence[float], powers_w: Sequence[float], begin: float, end: float
) -> float | None:
    """The integral of a sampled power over an interval in which the device did one thing.

    Only samples inside count, since the others are of something else: the power is taken as linear
    between two of them, and as the nearest one's at both ends.

    Args:
        times_s: when each sample was taken, ascending.
        powers_w: the power of each, in watts.
        begin, end: on the same clock.

    Returns:
        joules; None with fewer than :data:`FEWEST_SAMPLES` samples inside.
    """
    import numpy as np

    times = np.asarray(times_s, dtype=np.float64)
    inside = (times >= begin) & (times <= end)
    if int(inside.sum()) < FEWEST_SAMPLES:
        return None
    times, powers = times[inside], np.asarray(powers_w, dtype=np.float64)[inside]
    at = np.concatenate([[begin], times, [end]])
    heights = np.interp(at, times, powers)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(at)).sum())
