"""``package --triton``: a model repository for NVIDIA's Triton Inference Server.

One model takes prompts and single tokens: Triton keeps a sequence's state for one model only, so a
prompt fed to one and its continuation to another would begin from nothing. The prefill graph takes
any number of tokens, one too, and is that model. The sequence batcher routes a stream's requests to
one instance and hands the state, which is an input and an output of the graph, from one to the next
(«implicit state»). Its strategy is ``oldest``: batches are formed of whichever streams have a
request, so there may be far more streams than rows of a batch, and none of the graph's inputs has
to say that a row is empty. Streams whose requests have equal length run in one batch.

Sources: docs/user_guide/implicit_state_management.md and model_repository.md of
triton-inference-server/server, protobuf/model_config.proto of triton-inference-server/common.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import UNIFIED, Bundle, EngineEntry, StateSpec, new_bundle
from ssm_export.engines._graphs import graph_ports, load_graph
from ssm_export.engines._ports import Port
from ssm_export.engines._sources import NATIVE, native_graph
from ssm_export.engines._trt_profile import Ranges, trtexec_command
from ssm_export.errors import SsmExportError
from ssm_export.packaging.contents import view_of
from ssm_export.packaging.triton_config import configuration, text_format
from ssm_export.progress import SILENT, Progress

_MAX_CHUNK: Final = 1024
_PROFILES: Final = ("0", "1")
"""Optimization profiles of an engine that is tuned for single tokens and for prompts."""
_FORM: Final = "prefill"
_ENGINE_LATER: Final = "tensorrt-without-engine"
"""Outside the repository: the server would refuse to start over a model without its file."""


@dataclass(frozen=True)
class RepositoryReport:
    """What was written.

    Attributes:
        repository: the folder; ``models`` in it is what the server is given.
        models: name to backend of each model that can be loaded.
        later: folder of the TensorRT model that lacks its engine; empty where it has one.
        state_bytes: of one stream on the server: the state before and after a request.
        streams: how many keep their state per instance.
        max_batch: rows of a batch.
        notes: what has to be done before it runs.
    """

    repository: str
    models: dict[str, str]
    later: str
    state_bytes: int
    streams: int
    max_batch: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as members of a ``package`` document."""
        return asdict(self)


def make_repository(
    bundle: Bundle,
    output: str | os.PathLike[str],
    *,
    target: str | None = None,
    max_batch: int = 32,
    streams: int = 4096,
    progress: Progress = SILENT,
) -> RepositoryReport:
    """Write a model repository; the bundle is only read.

    Args:
        bundle: the open bundle.
        output: the folder to make.
        target: whose TensorRT engine is taken; the first that the bundle has when None.
        max_batch: rows of a batch; an engine's own limit goes before it.
        streams: sequences that keep their state in one instance; more wait.
        progress: shows a bar.

    Raises:
        SsmExportError: ``OUTPUT_EXISTS``; ``BAD_OPTION`` for numbers below one, and for a bundle in
            bf16 without an engine, which ONNX Runtime does not run; ``DISK_FULL``.
    """
    for option, number in (("--max-batch", max_batch), ("--streams", streams)):
        if number < 1:
            raise SsmExportError(
                errors.BAD_OPTION, f"{option} is {number}", fix=f"{option} of at least 1"
            )
    engine = _engine(bundle, target)
    name = re.sub(r"[^\w.-]", "-", bundle.path.resolve().name)
    runtime = bundle.manifest.precision != "bf16"
    if not runtime and engine is None:
        raise SsmExportError(
            errors.BAD_OPTION,
            "the bundle is in bf16, which ONNX Runtime does not run, and has no TensorRT engine",
            where="--triton",
            fix="export with --precision fp16, or build the engine first: "
            f"ssm-export build {bundle.path} --engine tensorrt --target TARGET",
        )
    models: dict[str, str] = {}
    with new_bundle(output) as folder, view_of(bundle) as view:
        graph = native_graph(view, _FORM)
        inputs, outputs = graph_ports(load_graph(graph))
        ports = _Ports(bundle.manifest.states, inputs, outputs)
        if runtime:
            models[name] = "onnxruntime"
            place = folder / "models" / name
            _write_model(place, ports, name, "onnxruntime", max_batch, streams)
            _copy([graph, view.file(view.manifest.weights)], place / "1/model.onnx", progress)
            (place / "1/model.onnx" / graph.name).rename(place / "1/model.onnx/model.onnx")
        planned = f"{name}-tensorrt"
        if engine is not None:
            models[planned] = "tensorrt"
            place = folder / "models" / planned
            rows = min(max_batch, engine.profile.get("batch", [1, 1, max_batch])[-1])
            profiles = _PROFILES if engine.form == UNIFIED else ()
            _write_model(place, ports, planned, "tensorrt", rows, streams, profiles)
            _copy([bundle.file(engine.file)], place / "1", progress)
            (place / "1" / Path(engine.file.path).name).rename(place / "1/model.plan")
        else:
            place = folder / _ENGINE_LATER / planned
            _write_model(place, ports, planned, "tensorrt", max_batch, streams, _PROFILES)
            (place / "1").mkdir()
            (folder / _ENGINE_LATER / "build.sh").write_text(
                _build_script(name, planned, inputs, max_batch), encoding="utf-8"
            )
            (folder / _ENGINE_LATER / "build.sh").chmod(0o755)
    return RepositoryReport(
        repository=os.fspath(output),
        models=models,
        later="" if engine else f"{_ENGINE_LATER}/{planned}",
        state_bytes=2 * sum(state.bytes_per_row for state in bundle.manifest.states),
        streams=streams,
        max_batch=max_batch,
        notes=_notes(engine, planned),
    )


def _engine(bundle: Bundle, target: str | None) -> EngineEntry | None:
    """The engine that takes prompts and single tokens; TensorRT-RTX's are none for this server."""
    for entry in bundle.manifest.engines:
        fits = entry.engine == "tensorrt" and entry.form in (UNIFIED, _FORM)
        if fits and target in (None, entry.target):
            return entry
    return None


def _notes(engine: EngineEntry | None, planned: str) -> tuple[str, ...]:
    if engine is None:
        how = f"{_ENGINE_LATER}/build.sh makes {planned} on the server, in its container"
        return (f"the bundle has no TensorRT engine for it: {how}",)
    release = engine.versions.get("tensorrt", "?")
    notes = [f"{planned} runs in a container with TensorRT {release} on {engine.target} only"]
    if engine.library:
        notes.append(
            "its plugins: tritonserver --backend-config=tensorrt,plugins=libssm_export_plugins.so"
        )
    return tuple(notes)


@dataclass(frozen=True)
class _Ports:
    """Inputs and outputs of the graph, and which of them are states."""

    states: tuple[StateSpec, ...]
    inputs: Sequence[Port]
    outputs: Sequence[Port]

    def others(self, side: str) -> list[Port]:
        """What a client sends, or gets."""
        taken = {s.name_in if side == "inputs" else s.name_out for s in self.states}
        ports = self.inputs if side == "inputs" else self.outputs
        return [port for port in ports if port.name not in taken]


def _write_model(
    place: Path,
    ports: _Ports,
    name: str,
    backend: str,
    max_batch: int,
    streams: int,
    profiles: Sequence[str] = (),
) -> None:
    place.mkdir(parents=True)
    config = configuration(
        ports.states,
        ports.others("inputs"),
        ports.others("outputs"),
        name=name,
        backend=backend,
        max_batch=max_batch,
        streams=streams,
        profiles=profiles,
    )
    (place / "config.pbtxt").write_text("\n".join(text_format(config)) + "\n", encoding="utf-8")
    for state in ports.states:
        if state.initial_value:
            file = place / "initial_state" / state.name_in
            file.parent.mkdir(exist_ok=True)
            sizes = [size for size in state.shape if isinstance(size, int)]
            np.full(sizes, state.initial_value, state.dtype).tofile(file)


def _build_script(name: str, planned: str, inputs: Sequence[Port], max_batch: int) -> str:
    ranges = Ranges.checked(max_batch, max_batch, _MAX_CHUNK, None)
    where = f"{_FORM} graph ({NATIVE})"
    both = (replace(ranges, time=(1, 1, 1)), ranges)
    command = trtexec_command(
        "tensorrt",
        Path(f"../models/{name}/1/model.onnx/model.onnx"),
        Path(f"{planned}/1/model.plan"),
        [one.shapes(tuple(inputs), where) for one in both],
        None,
        None,
    )
    return (
        "#!/bin/sh\n"
        "# Build the engine with the TensorRT of the server, on the GPU that will run it: inside\n"
        "# its container. Then the model can be loaded; the one of ONNX Runtime need not be.\n"
        'set -e\ncd "$(dirname "$0")"\n'
        "export PATH=$PATH:/usr/src/tensorrt/bin\n"
        f"{command}\n"
        f"mv {planned} ../models/\n"
    )


def _copy(files: Sequence[Path], folder: Path, progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    task = progress.task("copying", sum(file.stat().st_size for file in files))
    for file in files:
        shutil.copyfile(file.resolve(), folder / file.name)
        task.advance(file.stat().st_size)
