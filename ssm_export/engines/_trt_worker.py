"""The child process that holds TensorRT: it reads one request, builds one engine, and ends.

A process of its own because TensorRT-RTX's parser may end the process, because Polygraphy picks
between ``tensorrt`` and ``tensorrt_rtx`` once per process from an environment variable, and
because a build's memory goes back to the system when it ends. The request is one JSON object on
stdin; every line on stdout is one JSON message with a ``kind``: ``phase``, ``step``, ``warning``,
``done`` or ``failed``. Whatever the libraries print goes to stderr.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import IO, Any

_EXPECTED = "has Int64 binding"
"""The parser says so of every ``input_ids``, which are int64 on purpose."""


class Messages:
    """Writes messages to what was stdout, and sends everything else that prints to stderr."""

    def __init__(self) -> None:
        self._stream: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, kind: str, **values: Any) -> None:
        self._stream.write(json.dumps({"kind": kind, **values}) + "\n")
        self._stream.flush()


class _Relay(logging.Handler):
    """Sends the libraries' warnings, and keeps their errors for the failure message."""

    def __init__(self, messages: Messages) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        text = re.sub(r"\x1b\[[0-9;]*m|^\s*\[[A-Z]\]\s*", "", record.getMessage()).strip()
        sys.stderr.write(f"{record.levelname} {text}\n")
        if record.levelno >= logging.ERROR:
            self.errors.append(text)
        elif _EXPECTED not in text:
            self._messages.send("warning", text=text)


def main() -> int:
    messages = Messages()
    request = json.loads(sys.stdin.read())
    relay = _Relay(messages)
    try:
        done = build_engine(request, messages, relay)
    except Exception as error:  # reported to the parent, which turns it into our error
        causes = relay.errors or [f"{type(error).__name__}: {error}"]
        messages.send("failed", causes=causes)
        return 1
    messages.send("done", **done)
    return 0


def build_engine(request: dict[str, Any], messages: Messages, relay: _Relay) -> dict[str, Any]:
    """Parse, build, write the engine to ``request["output"]``; what it is, for the manifest."""
    rtx = request["engine"] == "tensorrt-rtx"
    if rtx:
        import tensorrt_rtx as trt
    else:
        import tensorrt as trt
    from polygraphy.backend.trt import (
        CreateConfig,
        Profile,
        engine_bytes_from_network,
        network_from_onnx_path,
    )
    from polygraphy.logger import G_LOGGER

    G_LOGGER.use_python_logging_system = True
    log = logging.getLogger("Polygraphy")
    log.propagate = False
    log.addHandler(relay)

    if request["library"] and trt.get_plugin_registry().load_library(request["library"]) is None:
        raise ValueError(f"TensorRT does not load the plugin library {request['library']}")
    profiles = []
    for shapes in request["profiles"]:
        profiles.append(Profile())
        for name, (low, best, high) in shapes.items():
            profiles[-1].add(name, min=tuple(low), opt=tuple(best), max=tuple(high))
    options: dict[str, Any] = {"profiles": profiles, "progress_monitor": _monitor(trt, messages)}
    if rtx:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        wanted = request["capability"]
        only = [_listed(trt, (wanted[0], wanted[1]))] if wanted else None
        config: Any = CreateConfigRTX(compute_capabilities=only, **options)
    else:
        config = CreateConfig(**options)

    # Weak typing is gone from TensorRT 11, and with it, one day, the flag that asks for strong.
    typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    built = network_from_onnx_path(request["onnx"], strongly_typed=typed or None)
    network = built[1]
    _check_plugins(trt, network, request["plugins"])
    inputs = [_describe(network.get_input(i)) for i in range(network.num_inputs)]
    outputs = [_describe(network.get_output(i)) for i in range(network.num_outputs)]
    plan = engine_bytes_from_network(built, config)
    with open(request["output"], "wb") as stream:
        stream.write(memoryview(plan))
    return {
        "version": str(trt.__version__),
        "inputs": inputs,
        "outputs": outputs,
        "loads": _loads(trt, plan) if request["has_gpu"] else None,
    }


def _check_plugins(trt: Any, network: Any, wanted: int) -> None:
    """Every scan must have become a layer of our library, and nothing else a plugin."""
    kind = getattr(trt.LayerType, "PLUGIN_V3", None)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    found = sum(layer.type == kind for layer in layers)
    if found != wanted:
        raise ValueError(f"{found} layers of the network are plugins, the graph has {wanted} scans")


def _listed(trt: Any, wanted: tuple[int, int]) -> tuple[int, int]:
    """``wanted``, when the package can build for it."""
    if f"SM{wanted[0]}{wanted[1]}" not in trt.ComputeCapability.__members__:
        shown = ", ".join(name for name in trt.ComputeCapability.__members__ if "SM" in name)
        raise ValueError(f"compute capability {wanted[0]}.{wanted[1]} is not one of {shown}")
    return wanted


_NUMPY_NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def _describe(tensor: Any) -> dict[str, Any]:
    name = tensor.dtype.name
    return {
        "name": tensor.name,
        "dtype": _NUMPY_NAMES.get(name, name.lower()),
        "shape": [int(size) for size in tensor.shape],
    }


def _loads(trt: Any, plan: Any) -> bool:
    from polygraphy.backend.trt import get_trt_logger

    return trt.Runtime(get_trt_logger()).deserialize_cuda_engine(plan) is not None


def _monitor(trt: Any, messages: Messages) -> Any:
    """TensorRT's progress as messages: the steps of its outermost phase."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outermost = ""
            self.left = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.outermost, self.left = phase_name, num_steps
                messages.send("phase", steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self.outermost:
                self.left -= 1
                messages.send("step")
            return True

        def phase_finish(self, phase_name: str) -> None:
            # TensorRT-RTX ends a phase without reporting its last step.
            while phase_name == self.outermost and self.left > 0:
                self.left -= 1
                messages.send("step")

    return Monitor()


if __name__ == "__main__":
    sys.exit(main())
