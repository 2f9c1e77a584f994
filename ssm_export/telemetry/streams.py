"""Programs that print a line per sample, and counters that are read in turn, with their times.

Only the arrival of each line is noted while a measurement runs; lines are taken apart afterwards.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

_PATIENCE_S: Final = 2.0
"""How long a program may take to end before it is killed."""
_MOST_LINES: Final = 1_000_000
_LONGEST_LINE: Final = 20_000


class LineStream:
    """A program whose lines are collected by a thread until it is stopped.

    A program that is missing, ends, hangs or prints nonsense leaves fewer lines, or none, and the
    reason in :attr:`trouble`; nothing is raised.

    Args:
        command: the program and its options.
        look: asked at each line for what else is true then; must be quick and raise nothing.

    Attributes:
        lines: each with its time on the clock of ``time.perf_counter``.
        beside: what ``look`` said at each line.
    """

    def __init__(
        self, command: Sequence[str], look: Callable[[], tuple[str, ...]] | None = None
    ) -> None:
        self.lines: list[tuple[float, str]] = []
        self.beside: list[tuple[str, ...]] = []
        self.trouble = ""
        self._command = list(command)
        self._look = look
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the program and the thread."""
        try:
            self._process = _started(self._command)
        except OSError as error:
            self.trouble = f"{self._command[0]} cannot be started: {error.strerror or error}"
            return
        self._thread = threading.Thread(target=self._read, name="telemetry", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the program, within a few seconds whatever it does."""
        process, thread = self._process, self._thread
        if process is None or thread is None:
            return
        status = process.poll()
        self._stopped = True
        for sign in ("SIGTERM", "SIGKILL"):
            _end(process, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE_S)
                break
        thread.join(_PATIENCE_S)
        if status is not None:
            self.trouble = (
                f"{self._command[0]} ended by itself with status {status} "
                f"after {len(self.lines)} lines"
            )
        elif not self.lines:
            self.trouble = f"{self._command[0]} printed nothing"

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdout as lines:
            while line := lines.readline(_LONGEST_LINE):
                if self._stopped or len(self.lines) >= _MOST_LINES:
                    return
                arrived = time.perf_counter()
                # Before its line, so that who pairs the two lists meanwhile finds both.
                self.beside.append(() if self._look is None else self._look())
                self.lines.append((arrived, line.decode(errors="replace")))


class CounterStream:
    """Counters that a thread reads every ``interval_s``.

    Args:
        read: gives the counters; an OSError ends the reading.
        interval_s: seconds between two readings.
    """

    def __init__(self, read: Callable[[], tuple[int, ...]], interval_s: float) -> None:
        self.values: list[tuple[float, tuple[int, ...]]] = []
        self._read = read
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take a last reading and end the thread."""
        self._done.set()
        self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                self.values.append((time.perf_counter(), self._read()))
                if self._done.is_set():
                    return
                self._done.wait(self._interval_s)


def ask(*command: str, seconds: float = 5.0) -> str:
    """What a program prints; empty when it is missing, fails or takes longer than ``seconds``."""
    try:
        process = _started(command)
    except OSError:
        return ""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process, "SIGKILL")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_PATIENCE_S)
        return ""
    return said.decode(errors="replace") if process.returncode == 0 else ""


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """A program whose output is read; in a session of its own, so that its children end with it."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=os.name == "posix",
    )


def _end(process: subprocess.Popen[bytes], sign: str) -> None:
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, getattr(signal, sign))
        else:
            process.terminate()
