"""Runs a launch plan on torch tensors: compiled on a GPU, or under Triton's interpreter on a CPU.

``TRITON_INTERPRET=1``, set before the kernels are imported, chooses the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export_plugins.plan import Launch, Operand, Persistent, Plan, Tensor, Workspace

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


def run(plan: Plan, inputs: Tensors, outputs: Tensors | None = None) -> dict[str, torch.Tensor]:
    """Launch the kernels of a plan.

    Args:
        plan: the plan.
        inputs: port to tensor, exactly those the plan was made for, contiguous, on one device.
        outputs: port to tensor to write; new ones where left out. ``present`` may be the very
            tensor of ``past``, and no other two may overlap.

    Returns:
        Port to output.

    Raises:
        SsmExportError: ``BAD_OPERATOR_CALL`` naming the operator and the tensor.
    """
    launch, made = prepare(plan, inputs, outputs)
    launch()
    return made


def prepare(
    plan: Plan, inputs: Tensors, outputs: Tensors | None = None
) -> tuple[Callable[[], None], dict[str, torch.Tensor]]:
    """Check the tensors and allocate everything, so that what is returned only launches.

    Buffers that keep their values belong to what is returned and are zero before its first call.

    Args and errors are those of :func:`run`; a GPU's graph capture and its timing call the result.
    """
    import torch

    sizes = check_inputs(plan, inputs)
    device = inputs[plan.inputs[0].name].device
    made: dict[str, torch.Tensor] = {}
    for operand in plan.outputs:
        given = (outputs or {}).get(operand.name)
        if given is None:
            shape = [size if isinstance(size, int) else sizes[size] for size in operand.shape]
            given = torch.empty(shape, dtype=getattr(torch, operand.type), device=device)
        else:
            _check_tensor(plan, operand, given, sizes, str(device))
        made[operand.name] = given
    tensors = {**inputs, **made}  # no operator has an output of an input's name
    scratch: dict[str, torch.Tensor] = {}
    launches = plan.case(sizes).launches
    for one in launches:
        for argument in one.arguments:
            if isinstance(argument, Workspace) and argument.name not in scratch:
                kind = getattr(torch, argument.type)
                count = argument.elements.value(sizes)
                scratch[argument.name] = torch.empty(count, dtype=kind, device=device)
            elif isinstance(argument, Persistent) and argument.name not in scratch:
                kind = getattr(torch, argument.type)
                scratch[argument.name] = torch.zeros(argument.elements, dtype=kind, device=device)

    def bound(one: Launch) -> Callable[[], None]:
        values: dict[str, object] = dict(one.kernel.constants)
        names = [n for n in one.kernel.function.arg_names if n not in values]
        for name, argument in zip(names, one.arguments, strict=True):
            if isinstance(argument, Tensor):
                values[name] = tensors[argument.port]
            elif isinstance(argument, (Workspace, Persistent)):
                values[name] = scratch[argument.name]
            else:
                values[name] = argument.value(sizes)
        grid = tuple(axis.value(sizes) for axis in one.grid)
        options = {"num_warps": one.kernel.num_warps, "num_stages": one.kernel.num_stages}

        def call() -> None:
            one.kernel.function[grid](**values, **options)

        return call

    calls = [bound(one) for one in launches]

    def launch() -> None:
        for call in calls:
            call()

    return launch, made


def check_inputs(plan: Plan, inputs: Tensors) -> dict[str, int]:
    """Check tensors against a plan and give the sizes of its symbols.

    Raises:
        SsmExportError: ``BAD_OPERATOR_CALL``.
    """
    expected = {operand.name: operand for operand in plan.inputs}
    if set(inputs) != set(expected):
        missing, extra = sorted(set(expected) - set(inputs)), sorted(set(inputs) - set(expected))
        raise _bad(plan, f"inputs missing: {missing}, not expected: {extra}")
    sizes: dict[str, int] = {}
    device = str(inputs[plan.inputs[0].name].device)
    for operand in plan.inputs:
        _check_tensor(plan, operand, inputs[operand.name], sizes, device)
    return sizes


def _check_tensor(
    plan: Plan, operand: Operand, tensor: torch.Tensor, sizes: dict[str, int], device: str
) -> None:
    name, shape = operand.name, tuple(tensor.shape)
    wanted = "(" + ", ".join(str(sizes.get(str(size), size)) for size in operand.shape) + ")"
    if str(tensor.dtype).removeprefix("torch.") != operand.type:
        raise _bad(plan, f"'{name}' is {tensor.dtype}, the plan takes {operand.type}")
    if len(shape) != len(operand.shape):
        raise _bad(plan, f"'{name}' has shape {shape}, the plan takes {wanted}")
    for size, wants in zip(shape, operand.shape, strict=True):
        known = wants if isinstance(wants, int) else sizes.setdefault(wants, size)
        if size != known:
            raise _bad(plan, f"'{name}' has shape {shape}, the plan takes {wanted}")
        if isinstance(wants, str) and size < 1:
            raise _bad(plan, f"'{name}' has shape {shape}: {wants} is 0, it must be at least 1")
    if not tensor.is_contiguous():
        raise _bad(plan, f"'{name}' is not contiguous (strides {tuple(tensor.stride())})")
    if str(tensor.device) != device:
        raise _bad(plan, f"'{name}' is on {tensor.device}, others are on {device}")
    if tensor.data_ptr() % 16:
        raise _bad(plan, f"'{name}' does not begin at a multiple of 16 bytes")


def _bad(plan: Plan, what: str) -> SsmExportError:
    return SsmExportError(errors.BAD_OPERATOR_CALL, what, where=plan.op)
