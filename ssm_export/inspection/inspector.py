"""Inspect: say what a bundle, a graph, an engine or a checkpoint holds. Weights are never read."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import MANIFEST, Bundle, EngineEntry, StateSpec
from ssm_export.errors import SsmExportError
from ssm_export.inspection.formats import TypeFacts, initializer_types, quantization_facts
from ssm_export.inspection.packs import PACK_SUFFIX, PackFacts, read_pack

if TYPE_CHECKING:
    import onnx
    from rich.console import RenderableType

STANDARD: Final = "ai.onnx"
ENGINE_SUFFIXES: Final = (".engine", ".plan", ".trt")
WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")
_LARGEST_HEADER: Final = 100_000_000


@dataclass(frozen=True)
class GraphFacts:
    """One ONNX file.

    Attributes:
        path: relative to the bundle, or as given.
        form, lowering: of a bundle's graph; empty for a file on its own.
        bytes: of the file itself.
        opsets: domain to version.
        nodes: how many of each operator, as ``domain::Op``, those inside of Loop and Scan too.
        functions: function bodies, with the number of their nodes.
        inputs, outputs: name to type and shape.
        initializers: number of weights and constants.
        types: ONNX type of the weights and constants to how many have it, and their bytes.
        external: external file to the bytes that the graph uses of it.
    """

    path: str
    form: str
    lowering: str
    bytes: int
    opsets: dict[str, int]
    nodes: dict[str, int]
    functions: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    initializers: int
    types: dict[str, TypeFacts]
    external: dict[str, int]

    @property
    def node_count(self) -> int:
        return sum(self.nodes.values())


@dataclass(frozen=True)
class StateFacts:
    """One state: as in the manifest, with its bytes for one batch row."""

    name_in: str
    name_out: str
    kind: str
    layer: int
    shape: tuple[int | str, ...]
    dtype: str
    layout: str
    bytes_per_row: int


@dataclass(frozen=True)
class InspectReport:
    """What is at a path.

    Attributes:
        path: that was inspected.
        kind: ``bundle``, ``onnx``, ``engine``, ``kernels`` or ``checkpoint``.
        facts: what there is to say in single values: family, sizes, precision, lowering, …
        states, graphs: of a bundle; an ONNX file has one graph.
        engines: of a bundle, or the one that was inspected.
        parity: recorded vectors, the worst errors measured, and the last verify report's checks.
        tensors: of a checkpoint: count, parameters and bytes by type.
        packs: of a file of kernel images: one for each operator call.
    """

    path: str
    kind: str
    bytes: int
    facts: dict[str, Any] = field(default_factory=dict)
    states: tuple[StateFacts, ...] = ()
    graphs: tuple[GraphFacts, ...] = ()
    engines: tuple[EngineEntry, ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    packs: tuple[PackFacts, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The members of the ``ssm-export/inspect@1`` document."""
        return {"ok": True, **asdict(self)}

    def table(self) -> RenderableType:
        """The report for a terminal."""
        from ssm_export.inspection.tables import inspect_tables

        return inspect_tables(self)


def inspect(path: str | os.PathLike[str]) -> InspectReport:
    """Say what is at ``path``: a bundle, a checkpoint folder, an ONNX file, an engine or kernels.

    Raises:
        SsmExportError: ``NO_SUCH_PATH``; ``NOT_A_BUNDLE`` for a folder or file that is none of
            these; ``GRAPH_INVALID`` for an ONNX file that cannot be read;
            ``BAD_KERNEL_IMAGE`` for a damaged ``.ssmk`` file.
    """
    place = Path(path)
    if not place.exists():
        raise SsmExportError(
            errors.NO_SUCH_PATH, f"there is nothing at '{place}'", fix="give a path that exists"
        )
    if place.is_dir():
        if (place / MANIFEST).is_file():
            return _bundle(Bundle.open(place, check_hashes=False))
        if (place / "config.json").is_file():
            return _checkpoint(place)
    elif place.suffix == ".onnx":
        graph = graph_facts(place, str(place))
        facts = {"opsets": graph.opsets, "nodes": graph.node_count}
        return InspectReport(str(place), "onnx", graph.bytes, facts, graphs=(graph,))
    elif place.suffix in ENGINE_SUFFIXES:
        return _engine(place)
    elif place.suffix == PACK_SUFFIX:
        return _kernels(place)
    raise SsmExportError(
        errors.NOT_A_BUNDLE,
        "it is neither a bundle, a checkpoint folder, an .onnx file, an engine nor kernels",
        where=str(place),
        fix=f"a bundle has {MANIFEST}, a checkpoint config.json, an engine ends in "
        f"{' or '.join(ENGINE_SUFFIXES)}, kernels in {PACK_SUFFIX}",
    )


def graph_facts(path: Path, shown: str, form: str = "", lowering: str = "") -> GraphFacts:
    """Read an ONNX file without its weights."""
    from ssm_export.engines._graphs import load_graph

    model = load_graph(path)
    counted: Counter[str] = Counter()
    _count(model.graph.node, counted)
    external: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in entries:
            external[entries["location"]] += int(entries.get("length", 0))
    return GraphFacts(
        path=shown,
        form=form,
        lowering=lowering,
        bytes=path.stat().st_size,
        opsets={entry.domain or STANDARD: entry.version for entry in model.opset_import},
        nodes=dict(counted.most_common()),
        functions={
            ":".join(part for part in (f"{f.domain}::{f.name}", f.overload) if part): len(f.node)
            for f in model.functions
        },
        inputs={value.name: _type(value) for value in model.graph.input},
        outputs={value.name: _type(value) for value in model.graph.output},
        initializers=len(model.graph.initializer),
        types=initializer_types(model.graph.initializer),
        external=dict(external),
    )


def _count(nodes: Iterable[onnx.NodeProto], counted: Counter[str]) -> None:
    for node in nodes:
        counted[f"{node.domain or STANDARD}::{node.op_type}"] += 1
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _count(graph.node, counted)


def _type(value: onnx.ValueInfoProto) -> str:
    import onnx

    tensor = value.type.tensor_type
    sizes = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} ({', '.join(sizes)})"


def _bundle(bundle: Bundle) -> InspectReport:
    manifest = bundle.manifest
    graphs = tuple(
        graph_facts(bundle.file(entry), entry.path, form, lowering)
        for form, entries in manifest.graphs.items()
        for lowering, entry in entries.items()
    )
    states = tuple(_state(state) for state in manifest.states)
    facts = {
        "family": manifest.family,
        "sizes": manifest.sizes,
        "precision": manifest.precision,
        "state_dtype": manifest.state_dtype,
        "logits": manifest.logits,
        "ragged": manifest.ragged,
        "verified": manifest.verified,
        "lowering": manifest.lowering,
        "weights": {"path": manifest.weights.path, "bytes": manifest.weights.bytes},
        "quantization": quantization_facts(bundle),
        "state_bytes_per_row": sum(state.bytes_per_row for state in states),
        "source": manifest.source,
        "created": manifest.created,
        "versions": manifest.versions,
    }
    parity = {
        "vectors": [
            {"name": entry.name, "kind": entry.kind, "batch": entry.batch, "tokens": entry.tokens}
            for entry in manifest.parity
        ],
        "measured": manifest.measured,
        "last_verify": _last_verify(bundle.path),
    }
    total = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    return InspectReport(
        str(bundle.path), "bundle", total, facts, states, graphs, manifest.engines, parity
    )


def _state(state: StateSpec) -> StateFacts:
    return StateFacts(
        state.name_in,
        state.name_out,
        state.kind,
        state.layer,
        state.shape,
        state.dtype,
        state.layout,
        state.bytes_per_row,
    )


def _last_verify(folder: Path) -> dict[str, Any] | None:
    try:
        saved = json.loads((folder / "reports/verify.json").read_text(encoding="utf-8"))
        kept = ("ok", "runner", "lowering", "against", "checks")
        return {key: saved[key] for key in kept}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _engine(path: Path) -> InspectReport:
    """An engine file: what the manifest of the bundle around it says of it."""
    facts: dict[str, Any] = {"note": "it is in no bundle, so nothing says what it was built from"}
    engines: tuple[EngineEntry, ...] = ()
    for folder in path.resolve().parents:
        if (folder / MANIFEST).is_file():
            manifest = Bundle.open(folder, check_hashes=False).manifest
            relative = path.resolve().relative_to(folder.resolve()).as_posix()
            engines = tuple(entry for entry in manifest.engines if entry.file.path == relative)
            facts = {"bundle": str(folder), "family": manifest.family}
            if not engines:
                facts["note"] = "the manifest of the bundle does not name it"
            break
    return InspectReport(str(path), "engine", path.stat().st_size, facts, engines=engines)


def _kernels(path: Path) -> InspectReport:
    packs = read_pack(path)
    chips = {image.compute_capability: None for pack in packs for image in pack.images}
    made = {(pack.ssm_export, pack.triton): None for pack in packs}
    facts = {
        "operators": sorted({pack.op for pack in packs}),
        "compute_capabilities": list(chips),
        "made": [{"ssm_export": ours, "triton": triton} for ours, triton in made],
    }
    return InspectReport(str(path), "kernels", path.stat().st_size, facts, packs=packs)


def _checkpoint(folder: Path) -> InspectReport:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        raise SsmExportError(
            errors.BAD_MODEL_CONFIG,
            f"it cannot be read: {error}",
            where=str(folder / "config.json"),
        ) from error
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    by_type: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for file in files:
        if file.suffix == ".safetensors":
            for tensor in _safetensors_header(file).values():
                by_type[tensor["dtype"]] += 1
                parameters[tensor["dtype"]] += int(np.prod(tensor["shape"], dtype=np.int64))
    tensors = {
        "files": {file.name: file.stat().st_size for file in files},
        "count": sum(by_type.values()),
        "parameters": sum(parameters.values()),
        "parameters_by_type": dict(parameters),
    }
    numbers = {k: v for k, v in config.items() if isinstance(v, (int, float, str, bool))}
    facts = {"family": config.get("model_type", ""), "config": numbers}
    total = sum(file.stat().st_size for file in files)
    return InspectReport(str(folder), "checkpoint", total, facts, tensors=tensors)


def _safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """The JSON header of a safetensors file: 8 bytes of its length, then the text."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_LARGEST_HEADER, file.stat().st_size):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(stream.read(length))
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        for name, value in tensors.items():
            if not {"dtype", "shape"} <= value.keys():
                raise ValueError(f"'{name}' has no shape")
    except (struct.error, ValueError, AttributeError) as error:
        raise SsmExportError(
            errors.CORRUPT_WEIGHTS, f"the header cannot be read ({error})", where=str(file)
        ) from error
    return tensors
