"""Timing calls, what many times say, and the peak of this process's memory meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

_CLEAR: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")

QUANTILES: Final = 41
"""Quantiles of a row: at the probabilities 0, 0.025 … 1."""
_STUDENT: Final = (12.706, 4.303, 3.182, 2.776)
"""Quantile 0.975 of Student's distribution for 2, 3, 4 and 5 blocks."""


def timed(call: Callable[[], object]) -> float:
    """Milliseconds that ``call`` takes."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def percentiles(times_ms: list[float]) -> tuple[float, float, float]:
    """p50, p90 and p99 of some times, interpolated between neighbours."""
    p50, p90, p99 = np.percentile(np.asarray(times_ms, dtype=np.float64), (50, 90, 99))
    return float(p50), float(p90), float(p99)


def quantiles(times_ms: Sequence[float]) -> tuple[float, ...]:
    """The times at :data:`QUANTILES` evenly spaced probabilities from 0 to 1."""
    found = np.quantile(np.asarray(times_ms, dtype=np.float64), np.linspace(0, 1, QUANTILES))
    return tuple(float(value) for value in found)


def median_interval(blocks: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The 95 % confidence interval of this run's median, by its blocks.

    It holds the median that runs without end would have, in 95 of 100 runs. The median of another
    run has an interval of its own, so it lies inside less often: two runs are compared by both.

    Student's interval of the medians of the blocks, around the median of all times. The blocks lie
    apart in time, so a machine that drifts makes them differ, and its drift widens the interval as
    the noise inside a block does.

    Args:
        blocks: times of each block, none empty.

    Returns:
        lower and upper end; both the median itself for a single block.
    """
    middle = float(np.median(np.concatenate([np.asarray(block) for block in blocks])))
    count = len(blocks)
    if count < 2:
        return middle, middle
    medians = [float(np.median(block)) for block in blocks]
    student = _STUDENT[min(count, len(_STUDENT) + 1) - 2]
    half = student * float(np.std(medians, ddof=1)) / count**0.5
    return middle - half, middle + half


def block_spread(blocks: Sequence[Sequence[float]]) -> float:
    """Largest less smallest median of the blocks, as a share of the median of all times."""
    medians = [float(np.median(block)) for block in blocks]
    middle = float(np.median(np.concatenate([np.asarray(block) for block in blocks])))
    return (max(medians) - min(medians)) / middle if middle > 0 else 0.0


class MemoryPeak:
    """The peak of resident memory from its making on, where Linux says; of the process elsewhere.

    Attributes:
        since: ``this bench``, or ``the start of the process`` where the peak cannot be reset.
    """

    def __init__(self) -> None:
        self.since = "this bench" if _reset_peak() else "the start of the process"

    def bytes(self) -> int | None:
        """The peak so far; None where the system does not say."""
        try:
            for line in _STATUS.read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            pass
        return _rusage_peak()


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _rusage_peak() -> int | None:
    resource: Any
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024
