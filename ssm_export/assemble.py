"""The parts that were traced → one graph of the whole model, tidied and with readable names.

Torch is not needed here. A part is the set of nodes that one of its outputs depends on; a block is
copied once for each layer that is built like it, with the layer's parameter names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import constant_manipulation
from onnxscript import optimizer

from ssm_export.bundle import StateSpec
from ssm_export.ops.spec import DOMAIN, OPSET, VERSION

IR_VERSION: Final = 10
"""What TensorRT 10.3's parser and every ONNX Runtime since 1.18 read; overloads need it."""
Rename = Callable[[str], str]
_ROOT: Final = "model."
_SCOPES: Final = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class BlockPlan:
    """How a model is made of blocks.

    Args:
        examples: for each kind of block, the layer that was traced.
        layers: for each layer, its kind.
        prefix: module path of a layer, with ``{layer}`` in it.
    """

    examples: tuple[int, ...]
    layers: tuple[int, ...]
    prefix: str

    def rename(self, layer: int) -> Rename:
        """Turn names of the layer that was traced into those of ``layer``."""
        example = self.prefix.format(layer=self.examples[self.layers[layer]])
        pattern = re.compile(rf"^{re.escape(example)}(?=[./]|$)")
        return lambda name: pattern.sub(self.prefix.format(layer=layer), name)


class Parts:
    """The traced graph of parts, folded and named."""

    def __init__(self, model: ir.Model, *, ragged: bool) -> None:
        for initializer in model.graph.initializers.values():
            initializer.const_value = None
        optimizer.fold_constants(model, onnx_shape_inference=False)
        _plain_reshapes(model.graph)
        _name_constants(model)
        self.graph = model.graph
        self.ragged = ragged
        self.inputs = {_name(value): value for value in model.graph.inputs}
        self.outputs = {_name(value): value for value in model.graph.outputs}

    def nodes(self, outputs: Iterable[ir.Value]) -> list[ir.Node]:
        """The nodes that ``outputs`` depend on, in graph order."""
        wanted: set[ir.Node] = set()
        stack = [value.producer() for value in outputs]
        while stack:
            node = stack.pop()
            if node is not None and node not in wanted:
                wanted.add(node)
                stack += [value.producer() for value in node.inputs if value is not None]
        return [node for node in self.graph if node in wanted]


def assemble(parts: Parts, plan: BlockPlan, states: Sequence[StateSpec], *, name: str) -> ir.Model:
    """Put the whole model together.

    Args:
        parts: the traced parts; outputs ``hidden.0``, ``logits``, and for each kind of block
            ``block.<kind>.hidden`` and its states.
        plan: which layer is of which kind.
        states: every state of the model in graph order.
        name: name of the graph.
    """
    graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, DOMAIN: VERSION})
    stamp = _Stamp(graph, parts)
    shared = ["input_ids", *(["sequence_lengths"] if parts.ragged else [])]
    bound = {port: stamp.input(parts.inputs[port], port) for port in shared}
    hidden = stamp.copy({**bound}, {"hidden.0": "hidden.0"}, lambda n: n)["hidden.0"]
    presents: list[ir.Value] = []
    for layer, kind in enumerate(plan.layers):
        own = [state for state in states if state.layer == layer]
        prefix = f"block.{kind}."
        here = {**bound, "hidden": hidden}
        for state in own:
            port = f"{prefix}past_{state.kind}"
            here[port] = stamp.input(parts.inputs[port], state.name_in)
        wanted = {f"{prefix}hidden": f"hidden.{layer + 1}"}
        wanted |= {f"{prefix}{state.kind}": state.name_out for state in own}
        made = stamp.copy(here, wanted, plan.rename(layer))
        hidden = made[f"{prefix}hidden"]
        presents += [made[f"{prefix}{state.kind}"] for state in own]
    logits = stamp.copy({**bound, "hidden": hidden}, {"logits": "logits"}, lambda n: n)["logits"]
    graph.outputs.extend([logits, *presents])
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="ssm-export")


class _Stamp:
    """Copies nodes of the parts into one graph, under unique readable names."""

    def __init__(self, graph: ir.Graph, parts: Parts) -> None:
        self.graph = graph
        self.parts = parts
        self.taken: dict[str, int] = {}

    def input(self, like: ir.Value, name: str) -> ir.Value:
        value = ir.Value(name=name, shape=like.shape, type=like.type)
        self.graph.inputs.append(value)
        return value

    def copy(
        self, inputs: Mapping[str, ir.Value], outputs: Mapping[str, str], rename: Rename
    ) -> dict[str, ir.Value]:
        """Copy the part that makes ``outputs``.

        Args:
            inputs: input name of the parts → value of this graph.
            outputs: output name of the parts → its name in this graph.
            rename: applied to the names of parameters and scopes.
        """
        ends = [self.parts.outputs[name] for name in outputs]
        values = {self.parts.inputs[name]: value for name, value in inputs.items()}
        for node in self.parts.nodes(ends):
            label = self._unique(rename(_label(node)))
            mapped = [self._mapped(value, values, rename) for value in node.inputs]
            copied = ir.Node(
                node.domain,
                node.op_type,
                mapped,
                node.attributes.values(),
                num_outputs=len(node.outputs),
                name=label,
            )
            self.graph.append(copied)
            for port, (old, new) in enumerate(zip(node.outputs, copied.outputs, strict=True)):
                new.name = label if port == 0 else f"{label}.{port}"
                new.shape, new.type = old.shape, old.type
                values[old] = new
        made = {}
        for name, end in zip(outputs, ends, strict=True):
            values[end].name = outputs[name]
            made[name] = values[end]
        return made

    def _mapped(
        self, value: ir.Value | None, values: dict[ir.Value, ir.Value], rename: Rename
    ) -> ir.Value | None:
        if value is None:
            return None
        if value not in values:  # a parameter or a folded constant
            name = rename(_name(value).removeprefix(_ROOT))
            if name not in self.graph.initializers:
                made = ir.Value(
                    name=name, shape=value.shape, type=value.type, const_value=value.const_value
                )
                self.graph.initializers[name] = made
            values[value] = self.graph.initializers[name]
        return values[value]

    def _unique(self, label: str) -> str:
        count = self.taken.get(label, 0)
        self.taken[label] = count + 1
        return label if count == 0 else f"{label}.{count}"


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def _label(node: ir.Node) -> str:
    """``backbone.layers.0.mixer.in_proj/MatMul``: the module that made the node, then its op."""
    scope = _scope(node)
    return f"{scope}/{node.op_type}" if scope else node.op_type


def _scope(node: ir.Node) -> str:
    """The module that made a node; a node made by folding takes the one of its input."""
    scopes = node.metadata_props.get(_SCOPES)
    if scopes is None:
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        return _scope(producer) if producer else ""
    modules = [scope.strip(" '\"") for scope in scopes.strip("[]").split(",")][:-1]
    return modules[-1].removeprefix(_ROOT.rstrip(".")).removeprefix(".") if modules else ""


def _name_constants(model: ir.Model) -> None:
    """Make every constant an initializer named after its value, so that equal ones are one."""
    lift = constant_manipulation.LiftConstantsToInitializersPass(
        lift_all_constants=True, size_limit=0
    )
    lift(model)
    initializers = model.graph.initializers
    for value in list(initializers.values()):
        if value.const_value is not None:
            content = "_".join(f"{item}" for item in value.const_value.numpy().reshape(-1))
            dtype = ir.DataType(value.const_value.dtype).name.lower()
            shape = "" if value.const_value.shape else "scalar_"
            del initializers[_name(value)]
            value.name = f"constant/{shape}{dtype}_{content}"
            first = initializers.setdefault(value.name, value)
            if first is not value:
                ir.convenience.replace_all_uses_with(value, first)


def _plain_reshapes(graph: ir.Graph) -> None:
    """Give every Reshape whose shapes are known a constant target, so no shape is computed.

    An axis that keeps its symbolic size is 0, a static one its integer, at most one other is −1.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or result.shape is None:
            continue
        target = list(_target(source.shape, result.shape))
        if target.count(-1) > 1:
            continue
        tensor = ir.tensor(target, dtype=ir.DataType.INT64)
        constant = ir.node("Constant", [], {"value": tensor})
        graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _target(source: ir.Shape, result: ir.Shape) -> Iterator[int]:
    for axis, size in enumerate(result):
        if isinstance(size, int):
            yield size
        elif axis < len(source) and source[axis] == size:
            yield 0
        else:
            yield -1
