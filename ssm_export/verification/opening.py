"""Opening a runner, one graph at a time where two would not fit into memory.

Where not even one fits with its weights packed, ONNX Runtime is opened in its low-memory way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from ssm_export.bundle import Bundle
from ssm_export.engines.runner import Arrays, Runner

ROOM: Final = {"fp32": 2.5, "fp16": 5.0, "bf16": 5.0}
"""Memory that a CPU runtime takes for one graph, as a multiple of the weights file: the file's
pages, and a copy packed for its kernels, in fp32 whatever the precision."""
_MEMINFO: Final = Path("/proc/meminfo")


class OneForm:
    """A runner that holds one graph at a time, and opens anew when the other is wanted.

    Runtimes load a graph when it is first run, so a runner that has only been asked for prefill
    holds only that.
    """

    def __init__(self, open_one: Callable[[], Runner]) -> None:
        self._open = open_one
        self._runner = open_one()
        self._form: str | None = None
        self.info = self._runner.info
        self.max_chunk: int | None = getattr(self._runner, "max_chunk", None)

    def run(self, form: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Run one graph, after freeing the other."""
        if self._form not in (None, form):
            self._runner.close()
            self._runner = self._open()
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
    *,
    cuda_graph: bool = True,
) -> Iterator[Runner]:
    """A runner for the block: the one given, which stays open, or one opened by its name."""
    if not isinstance(runner, str):
        yield runner
        return
    loaded = _load(bundle, runner, lowering, threads, cuda_graph)
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


def _load(
    bundle: Bundle, name: str, lowering: str | None, threads: int | None, cuda_graph: bool
) -> Runner:
    from ssm_export.engines import open_runner

    available = available_memory()
    needed = bundle.manifest.weights.bytes * ROOM[bundle.manifest.precision]
    tight = available is not None and needed > available

    def open_one() -> Runner:
        return open_runner(
            bundle,
            name,
            lowering=lowering,
            threads=threads,
            low_memory=tight and name == "onnxruntime",
            cuda_graph=cuda_graph,
        )

    if available is None or 2 * needed <= available:
        return open_one()
    return OneForm(open_one)
