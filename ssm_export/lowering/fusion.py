"""Neighbouring operator calls that one kernel computes become one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from ssm_export.lowering.bodies import form_of
from ssm_export.ops import DOMAIN, _onnx, fused_ops

_FUSED: Final = "ConvSsdScan"
_SCAN_INPUTS: Final = ("x", "dt", "A", "B", "C", "D", "dt_bias", "past", "sequence_lengths")
_CONV_INPUTS: Final = ("x", "weight", "bias", "past", "sequence_lengths")


@dataclass(frozen=True)
class _Match:
    """A convolution, the split and the reshapes after it, and the scan that reads them."""

    conv: ir.Node
    between: tuple[ir.Node, ...]
    scan: ir.Node


def fuse_calls(model: ir.Model) -> int:
    """Make one ``ConvSsdScan`` of each CausalConv1d, Split, three Reshapes and SsdScan, in place.

    Where anything between is used elsewhere or has other sizes, the nodes stay as they are. A new
    call has no body; its form is among its metadata, where :func:`form_of_call` finds it.

    Args:
        model: a canonical graph with bodies.

    Returns:
        How many calls were made.
    """
    graphs = [model.graph, *model.graph.subgraphs()]
    count = 0
    for graph in graphs:
        for node in list(graph):
            match = _match(node, model)
            if match is not None:
                _replace(graph, match, form_of(node, model))
                count += 1
    return count


def form_of_call(node: ir.Node, model: ir.Model) -> str:
    """The form of a call, whether it has a body or was made by :func:`fuse_calls`."""
    return node.metadata_props.get(_onnx.FORM) or form_of(node, model)


def _named(node: ir.Node, names: tuple[str, ...]) -> dict[str, ir.Value | None]:
    values = [*node.inputs, *[None] * (len(names) - len(node.inputs))]
    return dict(zip(names, values, strict=True))


def _match(scan: ir.Node, model: ir.Model) -> _Match | None:
    if (scan.domain, scan.op_type) != (DOMAIN, "SsdScan"):
        return None
    inputs = _named(scan, _SCAN_INPUTS)
    reshapes = [_only_reader(inputs[name], scan, "", "Reshape") for name in "xBC"]
    if None in reshapes:
        return None
    x, B, C = (node for node in reshapes if node is not None)
    split = _only_reader(x.inputs[0], x, "", "Split")
    if split is None or list(split.outputs) != [n.inputs[0] for n in (x, B, C)]:
        return None
    if any(len(value.uses()) != 1 or value.is_graph_output() for value in split.outputs):
        return None
    conv = _only_reader(split.inputs[0], split, DOMAIN, "CausalConv1d")
    if conv is None or form_of(conv, model) != form_of(scan, model):
        return None
    lengths = _named(conv, _CONV_INPUTS)["sequence_lengths"]
    if lengths is not inputs["sequence_lengths"] or not _sizes_fit(inputs, split, (x, B, C)):
        return None
    return _Match(conv, (split, x, B, C), scan)


def _only_reader(value: ir.Value | None, reader: ir.Node, domain: str, op: str) -> ir.Node | None:
    """The node of this type that makes a value, where nothing but ``reader`` reads it, once."""
    producer = None if value is None else value.producer()
    if value is None or producer is None or (producer.domain, producer.op_type) != (domain, op):
        return None
    if value.is_graph_output() or len(value.uses()) != 1 or producer.graph is not reader.graph:
        return None
    return producer


def _sizes_fit(
    inputs: dict[str, ir.Value | None], split: ir.Node, reshapes: tuple[ir.Node, ...]
) -> bool:
    """Whether the channels are cut into H·P, G·N and G·N, in order, and only unpacked."""
    past, B = inputs["past"], inputs["B"]
    if past is None or B is None or past.shape is None or B.shape is None:
        return False
    sizes = [size for size in (*past.shape[1:], B.shape[2]) if isinstance(size, int)]
    if len(sizes) != 4:
        return False
    heads, width, states, groups = sizes
    axis = split.attributes["axis"].value if "axis" in split.attributes else 0
    if axis not in (2, -1) or len(split.inputs) < 2:
        return False
    if _integers(split.inputs[1]) != [heads * width, groups * states, groups * states]:
        return False
    goals = [[heads, width], [groups, states], [groups, states]]
    for node, goal in zip(reshapes, goals, strict=True):
        allow_zero = "allowzero" in node.attributes and node.attributes["allowzero"].value
        if allow_zero or _integers(node.inputs[1]) != [0, 0, *goal]:
            return False
    return True


def _integers(value: ir.Value | None) -> list[int] | None:
    tensor = None if value is None else value.const_value
    if tensor is None or value is None or value.is_graph_input():
        return None
    return [int(number) for number in tensor.numpy().reshape(-1)]


def _replace(graph: ir.Graph, match: _Match, form: str) -> None:
    conv, scan = _named(match.conv, _CONV_INPUTS), _named(match.scan, _SCAN_INPUTS)
    given = {
        "xBC": conv["x"],
        "weight": conv["weight"],
        "bias": conv["bias"],
        "past_conv": conv["past"],
        "past_ssm": scan["past"],
        **{name: scan[name] for name in ("dt", "A", "D", "dt_bias", "sequence_lengths")},
    }
    spec = fused_ops()[_FUSED]
    attributes = {**match.conv.attributes, **match.scan.attributes}
    made = ir.Node(
        DOMAIN,
        _FUSED,
        [given[port.name] for port in spec.inputs],
        [attributes[name] for name in spec.attributes if name in attributes],
        num_outputs=len(spec.outputs),
        name=match.scan.name,
    )
    made.metadata_props.update({**match.scan.metadata_props, _onnx.FORM: form})
    old = [match.scan.outputs[0], match.conv.outputs[1], match.scan.outputs[1]]
    ir.convenience.replace_nodes_and_values(
        graph, match.scan, [match.conv, *match.between, match.scan], [made], old, made.outputs
    )
