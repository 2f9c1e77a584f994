"""Progress of long work: bars on stderr when it is a terminal, nothing otherwise.

A stage takes a ``Progress`` and reports to it; it never prints by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Task(Protocol):
    """One bar."""

    def advance(self, amount: float = 1.0) -> None:
        """Move the bar by ``amount`` of its total."""
        ...


class Progress(Protocol):
    """Something that shows bars."""

    def task(self, label: str, total: float | None = None) -> Task:
        """Begin a bar; ``total`` is None where the amount of work is not known."""
        ...


class _Silent:
    def task(self, label: str, total: float | None = None) -> Task:
        return self

    def advance(self, amount: float = 1.0) -> None:
        return None


SILENT: Progress = _Silent()
"""Shows nothing: the default of the Python API."""


class _RichTask:
    def __init__(self, bars: object, identity: object) -> None:
        self._bars = bars
        self._identity = identity

    def advance(self, amount: float = 1.0) -> None:
        self._bars.advance(self._identity, amount)  # type: ignore[attr-defined]  # rich is lazy


class _RichProgress:
    def __init__(self, bars: object) -> None:
        self._bars = bars

    def task(self, label: str, total: float | None = None) -> Task:
        identity = self._bars.add_task(label, total=total)  # type: ignore[attr-defined]  # as above
        return _RichTask(self._bars, identity)


@contextmanager
def terminal_progress(enabled: bool = True) -> Iterator[Progress]:
    """Bars on stderr while the block runs, when stderr is a terminal and ``enabled``."""
    if not (enabled and sys.stderr.isatty()):
        yield SILENT
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _RichProgress(bars)
