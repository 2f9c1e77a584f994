"""Function bodies for the operator calls of a canonical graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx_ir as ir

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import _onnx, all_ops
from ssm_export.ops.spec import DOMAIN, VERSION, AttributeValue, Call, OpSpec, Port

_BODY: Final = {"step": "step", "prefill": "chunked", "chunked": "chunked"}
_NEVER_STATIC: Final = "B"
_TYPE_LETTERS: Final = ("T", "S")
_IR_VERSION_WITH_OVERLOADS: Final = 10


def attach_bodies(model: ir.Model, form: str) -> ir.Model:
    """Give every call of our operators in a graph its function body, in place.

    Calls that need the same body share one function; where one operator needs several bodies,
    the functions differ by their ``overload``.

    Args:
        model: a graph that calls operators of domain ``ssm_export``.
        form: ``step`` for a graph of one token, ``prefill`` for one of any length.

    Returns:
        ``model``, with its functions; earlier functions of our domain are replaced.

    Raises:
        SsmExportError: ``BAD_OPERATOR_CALL`` when a call does not fit its schema.
    """
    for identifier in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[identifier]
    made: dict[tuple[object, ...], str] = {}
    counts: dict[str, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain != DOMAIN:
            continue
        spec = spec_of(node)
        while node.inputs and node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)
        call = call_of(node, spec, form)
        key = call_key(spec.name, call)
        if key not in made:
            count = counts[spec.name] = counts.get(spec.name, 0) + 1
            made[key] = "" if count == 1 else f"variant_{count}"
            function = _onnx.function(spec, _BODY[form], call, made[key])
            model.functions[function.identifier()] = function
        node.overload = made[key]
        node.version = None
    follow_opset(model)
    if made:
        model.graph.opset_imports[DOMAIN] = VERSION
        model.ir_version = max(model.ir_version, _IR_VERSION_WITH_OVERLOADS)
    return model


def follow_opset(model: ir.Model) -> None:
    """Give the bodies of a graph its opset, in place, where that is the newer one.

    They are written for the oldest; later opsets only add types to their operators.
    """
    newest = model.graph.opset_imports.get("", 0)
    for function in model.functions.values():
        function.opset_imports[""] = max(newest, function.opset_imports.get("", newest))


def spec_of(node: ir.Node) -> OpSpec:
    """The operator that a node of our domain calls."""
    specs = all_ops()
    if node.op_type not in specs:
        raise SsmExportError(
            errors.BAD_OPERATOR_CALL,
            f"domain {DOMAIN} has no operator '{node.op_type}'",
            where=_where(node),
            why=f"It has {', '.join(specs)}",
        )
    return specs[node.op_type]


def call_of(node: ir.Node, spec: OpSpec, form: str) -> Call:
    """How a node calls its operator, read from the values around it and checked.

    Raises:
        SsmExportError: ``BAD_OPERATOR_CALL`` for a missing input, an unknown attribute, a wrong
            rank or type, or sizes that disagree between inputs.
    """
    inputs = dict(zip((port.name for port in spec.inputs), node.inputs, strict=False))
    if len(node.inputs) > len(spec.inputs):
        _refuse(node, f"it takes at most {len(spec.inputs)} inputs and got {len(node.inputs)}")
    sizes: dict[str, int] = {"T": 1} if form == "step" and _has_time(spec) else {}
    types: dict[str, str] = {}
    for port in spec.inputs:
        value = inputs.get(port.name)
        if value is None:
            if not port.optional:
                _refuse(node, f"its input '{port.name}' is missing")
            continue
        _read_type(node, port, value, types)
        _read_sizes(node, port, value, sizes)
    for letter in sorted({axis for port in spec.inputs for axis in port.axes} - set("BT-")):
        if letter not in sizes:
            _refuse(node, f"the size of its axis {letter} is not a known integer")
    if "H" in sizes and sizes["H"] % sizes.get("G", 1):
        _refuse(node, f"{sizes['H']} heads cannot be split into {sizes['G']} groups")
    return Call(
        present=frozenset(name for name, value in inputs.items() if value is not None),
        attributes=_attributes(node, spec),
        sizes=sizes,
        types=types,
    )


def form_of(node: ir.Node, model: ir.Model) -> str:
    """The form, ``step`` or ``chunked``, of the body that a call has in its model.

    Raises:
        SsmExportError: ``LOWERING_FAILED`` when the call has no body.
    """
    function = model.functions.get(node.op_identifier())
    form = "" if function is None else function.metadata_props.get(_onnx.FORM, "")
    if not form:
        raise SsmExportError(
            errors.LOWERING_FAILED,
            "the call has no body of ours",
            where=_where(node),
            fix="lower a canonical graph, as export writes it",
        )
    return form


def _attributes(node: ir.Node, spec: OpSpec) -> Mapping[str, AttributeValue]:
    unknown = sorted(set(node.attributes) - set(spec.attributes))
    if unknown:
        _refuse(node, f"it has no attribute '{unknown[0]}'")
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    return {name: given.get(name, default) for name, default in spec.attributes.items()}


def _read_type(node: ir.Node, port: Port, value: ir.Value, types: dict[str, str]) -> None:
    if value.dtype is None:
        return
    name = {"FLOAT": "float32"}.get(value.dtype.name, value.dtype.name.lower())
    wanted = types.setdefault(port.type, name) if port.type in _TYPE_LETTERS else port.type
    allowed = {"T": ("float32", "float16", "bfloat16"), "S": ("float32", "float16")}
    if name != wanted:
        _refuse(node, f"its input '{port.name}' is {name}, expected {wanted}")
    if name not in allowed.get(port.type, (name,)):
        _refuse(node, f"its input '{port.name}' cannot be {name}")


def _read_sizes(node: ir.Node, port: Port, value: ir.Value, sizes: dict[str, int]) -> None:
    if value.shape is None:
        return
    shape = tuple(value.shape)
    if len(shape) != len(port.axes):
        _refuse(
            node,
            f"its input '{port.name}' has rank {len(shape)}, expected ({','.join(port.axes)})",
        )
    for axis, size in zip(port.axes, shape, strict=True):
        if not isinstance(size, int) or axis == _NEVER_STATIC:
            continue
        letter, size = ("K", size + 1) if axis == "-" else (axis, size)
        if sizes.setdefault(letter, size) != size:
            _refuse(
                node,
                f"its input '{port.name}' says {letter}={size}, another says {sizes[letter]}",
            )


def _has_time(spec: OpSpec) -> bool:
    return any("T" in port.axes for port in spec.inputs)


def call_key(name: str, call: Call) -> tuple[object, ...]:
    """Equal for calls of operator ``name`` that can share one body."""
    return (
        name,
        call.present,
        *(tuple(sorted(part.items())) for part in (call.attributes, call.sizes, call.types)),
    )


def _where(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name}'" if node.name else node.op_type


def _refuse(node: ir.Node, what: str) -> None:
    raise SsmExportError(errors.BAD_OPERATOR_CALL, what, where=_where(node))
