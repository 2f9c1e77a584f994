"""Opening a runner, one graph at a time where two would not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from ssm_export.bundle import Bundle
from ssm_export.engines.runner import Arrays, Runner

ROOM: Final = 4.0
"""A runtime may hold a graph's weights twice while it loads them, and there are two graphs."""
_MEMINFO: Final = Path("/proc/meminfo")


class OneForm:
    """A runner that holds one graph at a time, and opens anew when the other is wanted.

    Runtimes load a graph when it is first run, so a runner that has only been asked for prefill
    holds only that.
    """

    def __init__(self, bundle: Bundle, name: str, lowering: str | None, threads: int | None) -> None:
        self._arguments = bundle, name, lowering, threads
        self._runner = _open(*self._arguments)
        self._form: str | None = None
        self.info = self._runner.info
        self.max_chunk: int | None = getattr(self._runner, "max_chunk", None)

    def run(self, form: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Run one graph, after freeing the other."""
        if self._form not in (None, form):
            self._runner.close()
            self._runner = _open(*self._arguments)
        self._form = form
        return self._runner.run(form, feeds)

    def close(self) -> None:
        """Free the runtime's memory."""
        self._runner.close()


@contextmanager
def opened(
    bundle: Bundle,
    runner: str | Runner,
    lowering: str | None = None,
    threads: int | None = None,
) -> Iterator[Runner]:
    """A runner for the block: the one given, which stays open, or one opened by its name."""
    if not isinstance(runner, str):
        yield runner
        return
    available = available_memory()
    scarce = available is not None and bundle.manifest.weights.bytes * ROOM > available
    make = OneForm if scarce else _open
    loaded: Runner = make(bundle, runner, lowering, threads)
    try:
        yield loaded
    finally:
        loaded.close()


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _open(bundle: Bundle, name: str, lowering: str | None, threads: int | None) -> Runner:
    from ssm_export.engines import open_runner

    return open_runner(bundle, name, lowering=lowering, threads=threads)
