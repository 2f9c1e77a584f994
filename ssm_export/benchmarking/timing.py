"""Timing calls, and the peak of this process's memory meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

_CLEAR: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")


def timed(call: Callable[[], object]) -> float:
    """Milliseconds that ``call`` takes."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def percentiles(times_ms: list[float]) -> tuple[float, float, float]:
    """p50, p90 and p99 of some times, interpolated between neighbours."""
    p50, p90, p99 = np.percentile(np.asarray(times_ms, dtype=np.float64), (50, 90, 99))
    return float(p50), float(p90), float(p99)


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
