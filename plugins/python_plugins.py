"""Step kernels as Python plugins of TensorRT, registered through its module ``tensorrt.plugin``.

A workstation with TensorRT 10.9 or later can build and run step engines without a C++ compiler.
Prompts (several launches, or a choice between kernels) and JetPack 6 (TensorRT 10.3 knows no
Python plugins) need the C++ library in ``plugins/tensorrt``, which is to be preferred wherever it
can be built. TensorRT-RTX has no plugin layers at all.

Ahead of time (from 10.9 on) the PTX of a kernel becomes a part of the engine, which then needs
neither Python nor Triton. TensorRT passes such a kernel its inputs, then int32 expressions over
the shapes, then its outputs, and nothing else; a call is refused where its plan wants more. On
TensorRT 11.1 and 11.2 every such layer leaves a loaded module behind when its engine goes.
Otherwise (from 10.6 on) Triton launches the kernel, compiled on first use, from a callback that
Python runs in every step: slower, but handy for trying a kernel out.

None of this has been run with TensorRT itself. The tests hold it against a stand-in, and against
NVIDIA's own Python source of ``tensorrt.plugin`` where that is found.
Source: NVIDIA/TensorRT, samples/python/quickly_deployable_plugins.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError, missing_package
from ssm_export.ops import DOMAIN, Call, OpSpec
from ssm_export_plugins import aot, aot_cache, container
from ssm_export_plugins.expressions import Expr
from ssm_export_plugins.launch import prepare
from ssm_export_plugins.plan import Chip, Launch, Operand, Plan, Tensor
from ssm_export_plugins.ptx import without_last_parameters

if TYPE_CHECKING:
    import onnx_ir as ir

NAMESPACE: Final = DOMAIN
MOST_SHARED: Final = 48 * 1024
"""Bytes of shared memory that a kernel may use without asking the driver for more."""

_DATA_TYPES: Final = {
    "float32": ("FLOAT", "FP32"),
    "float16": ("HALF", "FP16"),
    "bfloat16": ("BF16", "BF16"),
    "int32": ("INT32", "INT32"),
}
"""ONNX type name to TensorRT's ``DataType`` member and to its spelling in a combination."""

_INTERFACE: Final = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2", "int32": "<i4"}


@dataclass(frozen=True)
class Kernel:
    """A compiled step kernel as TensorRT launches it.

    Args:
        entry: name of its entry point.
        ptx: its code, with exactly the parameters that TensorRT passes.
        threads: of a block.
        shared: bytes of dynamic shared memory.
    """

    entry: str
    ptx: bytes
    threads: int
    shared: int


def register(
    calls: Sequence[tuple[OpSpec, Call]], chip: Chip, *, ahead_of_time: bool = True, trt: Any = None
) -> tuple[str, ...]:
    """Register a plugin for each different step call; calling it again changes nothing.

    Args:
        calls: operators and how a step graph calls them.
        chip: the GPU that the engine is built for.
        ahead_of_time: put PTX into the engine, rather than call back into Python.
        trt: the module ``tensorrt``; imported where left out.

    Returns:
        A name such as ``ssm_export::SsdScan_aot_0a1b2c3d4e5f`` for each call, the same for equal
        calls. An ONNX node has the part after the colons as its op type (:func:`stamp`).

    Raises:
        SsmExportError: ``MISSING_PACKAGE`` without a TensorRT that has such plugins,
            ``KERNEL_UNSUPPORTED`` for a call that does not fit, and those of ``compile_calls``.
    """
    trt = trt or _tensorrt()
    plugin = _plugin_module(trt, ahead_of_time)
    for spec, call in calls:
        if call.sizes.get("T") != 1:
            raise _unfit(spec.name, "Python plugins are for graphs of one token")
    compiled = aot.compile_calls(calls, chip, ptx=True)
    names = []
    for one in compiled:
        mode = "aot" if ahead_of_time else "jit"
        digest = aot_cache.digest(one.spec.name, one.call, chip, True, aot.triton_version())
        name = f"{one.spec.name}_{mode}_{digest[:12]}"
        names.append(f"{NAMESPACE}::{name}")
        if hasattr(getattr(plugin.op, NAMESPACE, None), name):
            continue
        launch = only_launch(one.plan)
        kernel = kernel_of(one, launch) if ahead_of_time else None
        _register(trt, plugin, names[-1], one.plan, launch, kernel)
    return tuple(names)


def stamp(model: ir.Model, chip: Chip, *, ahead_of_time: bool = True, trt: Any = None) -> ir.Model:
    """A step graph whose scans are Python plugins, which are registered.

    Args:
        model: a canonical ``step`` graph, as ``onnx_ir.load`` reads it; it is not changed.
        chip, ahead_of_time, trt: as for :func:`register`; ``aot.chip_of`` gives a target's chip.

    Raises what :func:`register` does.
    """
    import onnx_ir as ir

    from ssm_export.lowering.plugin import PLUGIN_DOMAIN, lower_for_plugin
    from ssm_export_plugins.model_calls import model_calls

    calls = [(spec, call) for node, spec, call in model_calls(model) if node.domain == DOMAIN]
    names = register(calls, chip, ahead_of_time=ahead_of_time, trt=trt)
    lowered = lower_for_plugin(model, lambda spec, call: b"").model
    nodes = [
        node
        for node in ir.traversal.RecursiveGraphIterator(lowered.graph)
        if node.domain == PLUGIN_DOMAIN
    ]
    for node, name in zip(nodes, names, strict=True):
        node.op_type = name.split("::")[1]
        node.attributes.clear()
        values = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": int(ahead_of_time)}
        for attribute, value in values.items():
            node.attributes[attribute] = ir.convenience.convert_attribute(attribute, value)
    return lowered


def only_launch(plan: Plan) -> Launch:
    """The launch of a plan that has exactly one; ``KERNEL_UNSUPPORTED`` otherwise."""
    launches = [launch for case in plan.cases for launch in case.launches]
    if len(launches) != 1:
        raise _unfit(plan.op, f"its plan has {len(launches)} launches, a Python plugin makes one")
    return launches[0]


def kernel_of(compiled: aot.Compiled, launch: Launch) -> Kernel:
    """The PTX of a compiled step call, with exactly the parameters that TensorRT passes.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED`` where the kernel wants them in another order, or
            more shared memory than a block has by default.
    """
    plan = compiled.plan
    inputs = [Tensor(operand.name) for operand in plan.inputs]
    outputs = [Tensor(operand.name) for operand in plan.outputs]
    integers = [argument for argument in launch.arguments if isinstance(argument, Expr)]
    if list(launch.arguments) != [*inputs, *integers, *outputs]:
        raise _unfit(plan.op, "its kernel does not take inputs, integers and outputs in this order")
    (section,) = container.read(compiled.blob)
    (image,) = (image for image in section.images if image.kind == "ptx")
    if image.shared > MOST_SHARED:
        raise _unfit(plan.op, f"its kernel needs {image.shared} bytes of shared memory per block")
    text = image.data.rstrip(b"\0").decode("ascii")
    ptx = without_last_parameters(text, image.entry, image.extra)
    return Kernel(image.entry, ptx.encode("ascii"), image.threads, image.shared)


def symbolic(plugin: Any, expression: Expr, sizes: dict[str, Any]) -> Any:
    """An expression over sizes as TensorRT computes it; an integer stays one.

    Args:
        plugin: the module ``tensorrt.plugin``.
        expression: of additions, products, divisions, minima and maxima.
        sizes: symbol to TensorRT's expression of it.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED`` for another operation.
    """
    operations = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a // b,
        "cdiv": plugin.cdiv,
        "min": plugin.min,
        "max": plugin.max,
    }
    stack: list[Any] = []
    for token in expression.tokens:
        if isinstance(token, int):
            stack.append(token)
        elif token in sizes:
            stack.append(sizes[token])
        elif token in operations:
            right, left = stack.pop(), stack.pop()
            # Of two integers nothing is left to compute; TensorRT's classes want theirs first.
            stack.append(
                Expr((left, right, token)).value({})
                if isinstance(left, int) and isinstance(right, int)
                else operations[token](
                    plugin.ShapeExpr(left) if isinstance(left, int) else left, right
                )
            )
        else:
            raise _unfit(str(expression), f"TensorRT cannot compute {token!r}")
    (result,) = stack
    return result


def _register(
    trt: Any, plugin: Any, name: str, plan: Plan, launch: Launch, kernel: Kernel | None
) -> None:
    """Give TensorRT the functions of one plugin.

    It reads their signatures, which are made here: one parameter for each input of the plan.
    """
    described, passed = plugin.TensorDesc, plugin.Tensor
    several = GenericAlias(tuple, (described,) * len(plan.outputs))

    def describe(*inputs: Any) -> Any:
        sizes = _sizes(plan, inputs)
        return tuple(
            plugin.from_shape_expr(
                tuple(size if isinstance(size, int) else sizes[size] for size in output.shape),
                getattr(trt.DataType, _DATA_TYPES[output.type][0]),
            )
            for output in plan.outputs
        )

    def combinations(*descriptions: Any) -> Any:
        spelled = [_DATA_TYPES[o.type][1] for o in (*plan.inputs, *plan.outputs)]
        return [plugin.AutoTuneCombination(", ".join(spelled), "LINEAR")]

    def code(*arguments: Any) -> Any:
        assert kernel is not None
        sizes = _sizes(plan, arguments)
        shape = plugin.KernelLaunchParams()
        grid = [symbolic(plugin, axis, sizes) for axis in launch.grid]
        shape.grid_x, shape.grid_y, shape.grid_z = grid
        shape.block_x, shape.shared_mem = kernel.threads, kernel.shared
        integers = [
            plugin.SymInt32(symbolic(plugin, argument, sizes))
            for argument in launch.arguments
            if isinstance(argument, Expr)
        ]
        extra = plugin.SymIntExprs.from_tuple(tuple(integers))
        return kernel.entry.encode(), kernel.ptx, shape, extra

    def compute(*arguments: Any, **rest: Any) -> None:
        count = len(plan.inputs)
        stream = rest["stream"] if "stream" in rest else arguments[count + 1]
        run_callback(plan, arguments[:count], arguments[count], stream)

    names = [operand.name for operand in plan.inputs]
    inputs = dict.fromkeys(names, described)
    # TensorRT reads signatures, which mypy does not know functions to have.
    describe.__signature__ = _signature(inputs, several)  # type: ignore[attr-defined]
    plugin.register(name)(describe)
    found = _signature({**inputs, "outputs": several}, list[plugin.AutoTuneCombination])
    combinations.__signature__ = found  # type: ignore[attr-defined]
    plugin.autotune(name)(combinations)
    if kernel is None:
        tensors = dict.fromkeys(names, passed)
        given = GenericAlias(tuple, (passed,) * len(plan.outputs))
        found = _signature({**tensors, "outputs": given, "stream": int}, None)
        compute.__signature__ = found  # type: ignore[attr-defined]
        plugin.impl(name)(compute)
        return
    text = str | bytes
    made = GenericAlias(tuple, (text, text, plugin.KernelLaunchParams, plugin.SymIntExprs))
    found = _signature({**inputs, "outputs": several, "tactic": int}, made)
    code.__signature__ = found  # type: ignore[attr-defined]
    plugin.aot_impl(name)(code)


def run_callback(plan: Plan, inputs: Sequence[Any], outputs: Sequence[Any], stream: int) -> None:
    """Launch a plan on TensorRT's tensors: anything with a ``data_ptr`` and a ``shape``."""
    import torch

    given = {o.name: _torch(o, t) for o, t in zip(plan.inputs, inputs, strict=True)}
    made = {o.name: _torch(o, t) for o, t in zip(plan.outputs, outputs, strict=True)}
    with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
        prepare(plan, given, made)[0]()


def _torch(operand: Operand, tensor: Any) -> Any:
    import torch

    class Buffer:
        __cuda_array_interface__: Final = {
            "shape": tuple(tensor.shape),
            "typestr": _INTERFACE[operand.type],
            "data": (int(tensor.data_ptr), False),
            "version": 3,
        }

    # torch has no array interface for bf16, so it is taken as 16-bit integers.
    return torch.as_tensor(Buffer(), device="cuda").view(getattr(torch, operand.type))


def _sizes(plan: Plan, inputs: Sequence[Any]) -> dict[str, Any]:
    """Symbol to TensorRT's expression, from the first input that has it."""
    found: dict[str, Any] = {}
    for operand, description in zip(plan.inputs, inputs, strict=False):
        for axis, size in enumerate(operand.shape):
            if isinstance(size, str):
                found.setdefault(size, description.shape_expr[axis])
    return found


def _signature(parameters: dict[str, Any], returns: Any) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    made = [inspect.Parameter(n, kind, annotation=a) for n, a in parameters.items()]
    return inspect.Signature(made, return_annotation=returns)


def _tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise missing_package("tensorrt", "tensorrt", "a Python plugin") from error


def _plugin_module(trt: Any, ahead_of_time: bool) -> Any:
    wanted = "10.9" if ahead_of_time else "10.6"
    has_both = hasattr(trt, "QuickPluginCreationRequest") or not ahead_of_time
    try:
        if has_both:
            found = getattr(trt, "plugin", None)
            return found or importlib.import_module(f"{trt.__name__}.plugin")
    except ImportError:
        pass
    raise SsmExportError(
        errors.MISSING_PACKAGE,
        f"{trt.__name__} {trt.__version__} has no such Python plugins; TensorRT {wanted} has them",
        fix="build with the plugin library instead: --lowering plugin",
    )


def _unfit(where: str, what: str) -> SsmExportError:
    return SsmExportError(
        errors.KERNEL_UNSUPPORTED,
        what,
        where=where,
        fix="build with the plugin library instead: --lowering plugin",
    )
