"""A canonical graph cut at its layers, each piece in fp32 and small enough to run on its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.lowering.bodies import attach_bodies
from ssm_export.ops.spec import DOMAIN, VERSION

if TYPE_CHECKING:
    from ssm_export.bundle import Manifest

EMBEDDING: Final = -1
"""Index of the piece before the first layer; the head has the index L."""
_NARROW: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FP32: Final = ir.DataType.FLOAT


@dataclass(frozen=True)
class Piece:
    """One piece of a model: the embedding, a layer, or the head.

    Attributes:
        index: -1, the layer, or L.
        source: the value that it begins with: ``input_ids`` or ``hidden.i``.
        result: the value that it ends with: ``hidden.i+1`` or ``logits``.
        states: ``past_*`` names that it reads.
    """

    index: int
    source: str
    result: str
    states: tuple[str, ...]


class Pieces:
    """Cuts pieces out of a prefill graph.

    Args:
        model: the canonical prefill graph; it is not changed, and its weights are not read.
        manifest: of its bundle.
    """

    def __init__(self, model: ir.Model, manifest: Manifest) -> None:
        self._graph = model.graph
        self._opset = model.graph.opset_imports[""]
        layers = 1 + max(state.layer for state in manifest.states)
        names = [f"hidden.{index}" for index in range(layers + 1)]
        self._values = {value.name: value for node in model.graph for value in node.outputs}
        if missing := [name for name in names if name not in self._values]:
            raise SsmExportError(
                errors.GRAPH_INVALID,
                f"the graph has no value '{missing[0]}', which a layer begins with",
                fix="export the checkpoint again",
            )
        ends = ["input_ids", *names, "logits"]
        self.all = tuple(
            Piece(
                index - 1,
                ends[index],
                ends[index + 1],
                tuple(s.name_in for s in manifest.states if s.layer == index - 1),
            )
            for index in range(layers + 2)
        )
        self.ragged = manifest.ragged

    @property
    def layers(self) -> int:
        """L."""
        return len(self.all) - 2

    def cut(self, piece: Piece, outputs: Sequence[str] = ()) -> ir.Model:
        """A piece as a model of its own, in fp32, with the bodies of its calls.

        Args:
            piece: which.
            outputs: values inside it that are wanted beside its result.
        """
        graph = self._graph
        wanted = [self._values[name] for name in dict.fromkeys((piece.result, *outputs))]
        stop = {piece.source, "sequence_lengths", *piece.states}
        nodes = _needed(graph, wanted, stop)
        made = ir.Graph([], [], nodes=[], name=piece.result, opset_imports={"": self._opset})
        values: dict[ir.Value, ir.Value] = {}

        def mapped(value: ir.Value | None) -> ir.Value | None:
            if value is None or value in values:
                return None if value is None else values[value]
            copy = ir.Value(name=value.name, shape=value.shape, type=_wide(value))
            values[value] = copy
            if value.name in graph.initializers and value.const_value is not None:
                copy.const_value = _wide_tensor(value.const_value)
                made.initializers[str(value.name)] = copy
            else:
                made.inputs.append(copy)
            return copy

        for node in nodes:
            copied = ir.Node(
                node.domain,
                node.op_type,
                [mapped(value) for value in node.inputs],
                [_wide_attribute(node, attribute) for attribute in node.attributes.values()],
                num_outputs=len(node.outputs),
                name=node.name,
            )
            made.append(copied)
            for old, new in zip(node.outputs, copied.outputs, strict=True):
                new.name, new.shape, new.type = old.name, old.shape, _wide(old)
                values[old] = new
        made.outputs.extend(values[value] for value in wanted)
        if any(node.domain == DOMAIN for node in nodes):
            made.opset_imports[DOMAIN] = VERSION
        return ir.Model(made, ir_version=10, producer_name="ssm-export")


def with_bodies(model: ir.Model) -> ir.Model:
    """A cut piece with the bodies of its calls, chunked."""
    return attach_bodies(model, "prefill")


def _needed(graph: ir.Graph, wanted: Iterable[ir.Value], stop: set[str]) -> list[ir.Node]:
    """The nodes that ``wanted`` depends on, back to the values named in ``stop``, in order."""
    found: set[ir.Node] = set()
    stack = [value.producer() for value in wanted]
    while stack:
        node = stack.pop()
        if node is None or node in found:
            continue
        found.add(node)
        stack += [v.producer() for v in node.inputs if v is not None and v.name not in stop]
    return [node for node in graph if node in found]


def _wide(value: ir.Value) -> ir.TypeProtocol | None:
    return ir.TensorType(_FP32) if value.dtype in _NARROW else value.type


def _wide_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in _NARROW:
        return tensor
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float32)),
        dtype=_FP32,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def _wide_attribute(node: ir.Node, attribute: ir.Attr) -> ir.Attr:
    """Casts to a narrow type become casts to fp32, which change nothing."""
    if node.op_type == "Cast" and attribute.name == "to" and attribute.as_int() in _NARROW:
        return ir.AttrInt64("to", int(_FP32))
    if node.op_type == "Constant" and attribute.type == ir.AttributeType.TENSOR:
        return ir.AttrTensor(attribute.name, _wide_tensor(attribute.as_tensor()))
    return attribute
