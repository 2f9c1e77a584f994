"""One engine build in a child process: the request, the messages, and how it may end."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from ssm_export import errors
from ssm_export.engines._ports import Port
from ssm_export.errors import SsmExportError, missing_package
from ssm_export.progress import Progress

_WORKER: Final = "ssm_export.engines._trt_worker"
_LAST_LINES: Final = 12


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        engine: ``tensorrt-rtx`` or ``tensorrt``.
        onnx: the graph; its weights are found beside it.
        output: where the engine is written.
        profiles: of every optimization profile: input name -> smallest, best and largest shape.
        capability: the GPU to build for; None for every one from Ampere on (RTX).
        has_gpu: whether the engine can be loaded here to see that it loads.
        library: the plugin library, None for a graph of standard operators.
        plugins: how many layers of the network have to be plugins.
    """

    engine: str
    onnx: Path
    output: Path
    profiles: list[dict[str, list[list[int]]]]
    capability: tuple[int, int] | None
    has_gpu: bool = False
    library: Path | None = None
    plugins: int = 0


@dataclass(frozen=True)
class Built:
    """What was built: the library's version, the network's ports, the warnings."""

    version: str
    inputs: list[Port]
    outputs: list[Port]
    warnings: tuple[str, ...]
    loads: bool | None


def module_name(engine: str) -> str:
    """The Python module of an engine kind: ``tensorrt_rtx`` or ``tensorrt``."""
    return engine.replace("-", "_")


def require_packages(engine: str) -> None:
    """Raise ``MISSING_PACKAGE`` unless the engine kind's library and Polygraphy are there."""
    extra = "rtx" if engine == "tensorrt-rtx" else "tensorrt"
    if importlib.util.find_spec(module_name(engine)) is None:
        missing = missing_package(engine, extra, f"an engine of kind '{engine}'")
        if engine == "tensorrt":
            missing.fix += "; on a Jetson it comes with JetPack, and a virtual environment sees it "
            missing.fix += "with --system-site-packages"
        raise missing
    if importlib.util.find_spec("polygraphy") is None:
        raise missing_package("polygraphy", extra, "building an engine")


def build_in_child(request: BuildRequest, label: str, progress: Progress) -> Built:
    """Build one engine in a child process.

    Args:
        request: what to build.
        label: the bar's label, and where an error says it happened.
        progress: gets TensorRT's outermost phase as a bar.

    Raises:
        SsmExportError: ``ENGINE_BUILD_FAILED`` with the parser's or builder's messages, or with
            the last lines of the log when the child was ended by a signal.
    """
    with tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(request.engine),
            text=True,
            encoding="utf-8",
        )
        try:
            last, warnings = _follow(child, request, label, progress)
            status = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if last.get("kind") == "done" and status == 0:
            return _built(last, warnings)
        raise _build_error(last, status, _tail(log), label)


def _environment(engine: str) -> dict[str, str]:
    environment = dict(os.environ)
    environment["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if engine == "tensorrt-rtx" else "0"
    package = str(Path(__file__).resolve().parents[2])
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = package + (os.pathsep + inherited if inherited else "")
    return environment


def _follow(
    child: subprocess.Popen[str], request: BuildRequest, label: str, progress: Progress
) -> tuple[dict[str, Any], list[str]]:
    """Send the request and read messages until the child closes its end; the last of weight."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(
            json.dumps(
                {
                    "engine": request.engine,
                    "onnx": str(request.onnx),
                    "output": str(request.output),
                    "profiles": request.profiles,
                    "capability": request.capability,
                    "has_gpu": request.has_gpu,
                    "library": request.library and str(request.library),
                    "plugins": request.plugins,
                }
            )
        )
        child.stdin.close()
    except BrokenPipeError:
        return {}, []
    last: dict[str, Any] = {}
    warnings: list[str] = []
    task = None
    for line in child.stdout:
        message = json.loads(line)
        if message["kind"] == "phase":
            task = progress.task(label, message["steps"])
        elif message["kind"] == "step" and task is not None:
            task.advance()
        elif message["kind"] == "warning":
            warnings.append(message["text"])
        elif message["kind"] in ("done", "failed"):
            last = message
    return last, warnings


def _built(message: dict[str, Any], warnings: list[str]) -> Built:
    def ports(side: str) -> list[Port]:
        return [Port(port["name"], port["dtype"], tuple(port["shape"])) for port in message[side]]

    return Built(
        version=message["version"],
        inputs=ports("inputs"),
        outputs=ports("outputs"),
        warnings=tuple(dict.fromkeys(warnings)),
        loads=message["loads"],
    )


def _build_error(last: dict[str, Any], status: int, tail: list[str], where: str) -> SsmExportError:
    if last.get("kind") == "failed":
        what = "; ".join(" ".join(cause.split()) for cause in last["causes"][-4:])
    else:
        end = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        said = " | ".join(tail) if tail else "nothing"
        what = f"the builder ended with {end}; the last it said: {said}"
    return SsmExportError(
        errors.ENGINE_BUILD_FAILED,
        what,
        where=where,
        fix="ssm-export verify BUNDLE --lowering native tells whether the graph is sound; "
        "the command of --show-trtexec builds it without this tool",
    )


def _tail(log: IO[str]) -> list[str]:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines()]
    return [line for line in lines if line][-_LAST_LINES:]
