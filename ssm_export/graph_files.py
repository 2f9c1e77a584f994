"""The graphs of a bundle as files: the canonical ones, and what they are lowered to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir

from ssm_export import errors
from ssm_export.benchmarking.choose import choose_lowering
from ssm_export.bundle import Bundle, FileEntry, Manifest
from ssm_export.errors import SsmExportError
from ssm_export.external import Stored, write_tensors
from ssm_export.lowering import LOWERINGS, lower
from ssm_export.progress import SILENT, Progress

CANONICAL: Final = "canonical"
LARGE_WEIGHTS_BYTES: Final = 1 << 30
"""Above this a model is large: its lowering is not chosen by measuring, and few checks are run."""
_WEIGHT_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2}
INLINE_BYTES: Final = 1024
"""A constant of at most this size stays in its graph."""
_GRAPH_BYTES: Final = 5_000_000
"""A graph without its weights stays below this; more means that something was unrolled."""


def write_graphs(
    bundle: Bundle,
    graphs: Mapping[str, ir.Model],
    lowerings: Sequence[str],
    progress: Progress = SILENT,
) -> tuple[str, ...]:
    """Save canonical graphs and their lowerings; each passes ONNX's checker.

    Args:
        bundle: the bundle under construction; its manifest's ``graphs`` are filled in.
        graphs: form to a canonical graph whose weights lie in the bundle's file.
        lowerings: what else to make of each.
        progress: shows one step per graph.

    Returns:
        why calls were not rewritten to fused operators, one sentence each.
    """
    task = progress.task("lowering", len(graphs) * (1 + len(lowerings)))
    notes: list[str] = []
    for form, graph in graphs.items():
        bundle.manifest.graphs[form] = {CANONICAL: save_graph(bundle, graph, f"onnx/{form}.onnx")}
        task.advance()
    for lowering in lowerings:
        lowered = {form: lower(graph, lowering) for form, graph in graphs.items()}
        _store_repacked(bundle, lowering, [one.model for one in lowered.values()], progress)
        for form, one in lowered.items():
            path = f"onnx/{form}.{lowering}.onnx"
            bundle.manifest.graphs[form][lowering] = save_graph(bundle, one.model, path)
            notes += [f"{form} {lowering}: {note}" for note in one.notes]
            task.advance()
    return tuple(dict.fromkeys(notes))


def save_graph(bundle: Bundle, graph: ir.Model, relative: str) -> FileEntry:
    """Write a graph into a bundle; ``GRAPH_INVALID`` where ONNX's checker refuses it."""
    path = bundle.path / relative
    ir.save(graph, path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise SsmExportError(
            errors.GRAPH_INVALID, f"onnx.checker refuses {relative}: {error}"
        ) from error
    entry = bundle.entry(relative)
    if entry.bytes > _GRAPH_BYTES:
        raise SsmExportError(
            errors.GRAPH_INVALID,
            f"{relative} has {entry.bytes / 1e6:.1f} MB without its weights, "
            f"more than {_GRAPH_BYTES / 1e6:.0f}",
        )
    return entry


def is_large(manifest: Manifest) -> bool:
    """Whether running every lowering of a model side by side asks for too much memory.

    A quantized model counts with its float weights: graphs that hold no fused operator widen them.
    """
    bytes_each = _WEIGHT_BYTES[manifest.precision]
    return manifest.sizes["parameters"] * bytes_each > LARGE_WEIGHTS_BYTES


def fastest_lowering(bundle: Bundle, progress: Progress = SILENT) -> dict[str, Any]:
    """The manifest's ``lowering`` of a bundle that holds all: measured where it is small."""
    if not is_large(bundle.manifest):
        return choose_lowering(bundle, LOWERINGS, progress=progress)
    why = f"not measured, the model has {bundle.manifest.sizes['parameters'] / 1e9:.1f} billion "
    why += "parameters; "
    return {
        "chosen": "ort",
        "why": why + "ONNX Runtime's fused operators are the faster ones on smaller models",
        "measured": {},
    }


def move_out(
    graphs: Iterable[ir.Model], path_name: str, bundle: Bundle, progress: Progress = SILENT
) -> FileEntry | None:
    """Write what graphs hold in memory into one file of the bundle and point them into it.

    Initializers of one name are one tensor. What is small stays in the graphs.

    Args:
        graphs: they are changed; their files are to lie in the folder of the file.
        path_name: the file, relative to the bundle.
        bundle: where.
        progress: shows bytes.

    Returns:
        the file's entry; None where there was nothing to write.
    """
    stored: dict[str, Stored] = {}
    users: list[ir.Value] = []
    for graph in graphs:
        for name, value in graph.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or isinstance(tensor, ir.ExternalTensor):
                continue
            if tensor.nbytes > INLINE_BYTES:
                users.append(value)
                stored.setdefault(name, _as_stored(name, tensor))
    if not stored:
        return None
    made = write_tensors(stored.values(), bundle.path / path_name, progress)
    for value in users:
        value.const_value = made[str(value.name)]
    return bundle.entry(path_name)


def _as_stored(name: str, tensor: ir.TensorProtocol) -> Stored:
    shape = tuple(int(size) for size in tensor.shape)  # type: ignore[arg-type]  # static
    return Stored(
        name, tensor.dtype, shape, lambda: np.frombuffer(tensor.tobytes(), dtype=np.uint8)
    )


def _store_repacked(
    bundle: Bundle, lowering: str, graphs: Sequence[ir.Model], progress: Progress
) -> None:
    """A lowering that packs weights in a way of its own has them in a file of its own."""
    entry = move_out(graphs, f"onnx/weights.{lowering}.data", bundle, progress)
    if entry is not None:
        bundle.manifest.packed_weights[lowering] = entry
