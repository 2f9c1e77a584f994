"""The child processes that compile: started, fed with requests, read, and ended."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import ssm_export
from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export_plugins.aot_cache import ASSEMBLERS, Entry

CHILDREN: Final = 2
_KEPT: Final = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "PYTHONHOME", "PYTHONPATH",
    "VIRTUAL_ENV", "LD_LIBRARY_PATH", *ASSEMBLERS,
)  # fmt: skip
"""The environment variables that a child gets. Others could change what Triton compiles."""
_BOOT: Final = (
    "from ssm_export.resources import load_plugins; load_plugins(); "
    "from ssm_export_plugins.aot_worker import main; main()"
)
_LAST_LINES: Final = 3


def compile_in_children(requests: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Entry]]:
    """Compile requests side by side.

    Args:
        requests: made by :func:`ssm_export_plugins.aot_cache.request`.

    Yields:
        A request's position and what was compiled, as they are done.

    Raises:
        SsmExportError: of the first request that fails; the children are ended.
    """
    waiting = queue.SimpleQueue[int]()
    for index in range(len(requests)):
        waiting.put(index)
    results = queue.SimpleQueue[tuple[int, Any]]()
    children: list[_Child] = []

    def work(child: _Child) -> None:
        try:
            while True:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                results.put((index, child.ask(requests[index])))
        except BaseException as error:  # raised again by the thread that waits for results
            results.put((-1, error))

    try:
        threads = []
        for _ in range(min(CHILDREN, len(requests))):
            children.append(_Child())
            threads.append(threading.Thread(target=work, args=(children[-1],), daemon=True))
            threads[-1].start()
        for _ in requests:
            index, result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield index, result
    finally:
        for child in children:
            child.end()


class _Child:
    """One compiler process: a request per line in, an answer per line out."""

    def __init__(self) -> None:
        # Closed by close(), with the process that writes it.
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._cache = tempfile.TemporaryDirectory(prefix="ssm-export-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(self._cache.name),
            text=True,
            encoding="utf-8",
        )

    def ask(self, request: Mapping[str, Any]) -> Entry:
        """Compile one request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            raise self._died(request["op"])
        answer = json.loads(line)
        if "error" in answer:
            raise _error(answer["error"])
        return Entry(answer["choice"], base64.b64decode(answer["blob"]), answer["report"])

    def end(self) -> None:
        """End the process and remove what it left."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.close()
        self._cache.cleanup()

    def _died(self, op: str) -> SsmExportError:
        status = self._process.wait()
        try:
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        except ValueError:
            how = f"signal {-status}"
        self._log.seek(0)
        last = [line.strip() for line in self._log if line.strip()][-_LAST_LINES:]
        return SsmExportError(
            errors.KERNEL_COMPILE_FAILED,
            f"the compiler's process ended with {how}",
            where=op,
            why=" / ".join(last),
        )


def _error(said: Mapping[str, str]) -> SsmExportError:
    codes = {code.code: code for code in errors.all_codes()}
    return SsmExportError(
        codes[said["code"]], said["what"], where=said["where"], why=said["why"], fix=said["fix"]
    )


def _environment(cache: str) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    package = str(Path(ssm_export.__file__).resolve().parents[1])
    inherited = environment.get("PYTHONPATH")
    return {
        **environment,
        "PYTHONPATH": package + (os.pathsep + inherited if inherited else ""),
        "PYTHONHASHSEED": "0",
        "TMPDIR": cache,
        "TRITON_CACHE_DIR": cache,
        "TRITON_HOME": cache,
        "TRITON_ALWAYS_COMPILE": "1",
        "TRITON_DISABLE_LINE_INFO": "1",
        "TRITON_DUMP_PTXAS_LOG": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
