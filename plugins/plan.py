"""Launch plans: which kernels compute a call of an operator, on which grids, with which arguments.

A plan is data. :mod:`ssm_export_plugins.launch` runs it from Python on torch tensors, interpreted
or compiled; :mod:`ssm_export_plugins.aot` compiles its kernels and writes it down for the TensorRT
plugin library, which launches the same kernels on the same grids. Sizes that a model fixes are
constants of its kernels; only the batch ``B`` and, in a plan that takes prompts, the length ``T``
are symbols.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

from ssm_export.ops import Call, OpSpec, Port
from ssm_export_plugins.expressions import Expr, constant, symbol

TRITON_TYPES: Final = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int32": "i32",
}
"""ONNX type names to Triton's."""

BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4}

Dimension = int | str
"""A size that the plan fixes, or the symbol that stands for one."""


@dataclass(frozen=True)
class Chip:
    """What a plan depends on of the GPU it is made for.

    Args:
        capability: compute capability, such as ``(8, 7)``.
        shared_memory: bytes of shared memory that one block may use.
        multiprocessors: how many there are; decides how finely work is split.
    """

    capability: tuple[int, int]
    shared_memory: int
    multiprocessors: int


@dataclass(frozen=True)
class Tensor:
    """An input or output of the call as a kernel argument."""

    port: str


@dataclass(frozen=True)
class Workspace:
    """A scratch buffer of the plan as a kernel argument.

    Args:
        name: what launches of one plan share it by.
        type: ONNX type name of its elements.
        elements: how many; at the largest sizes of a profile it may only be as large or larger.
    """

    name: str
    type: str
    elements: Expr


@dataclass(frozen=True)
class Persistent:
    """A buffer as a kernel argument that is zero before the first launch and then keeps its values.

    Each execution context of a node has its own. A kernel that counts in it leaves zeros behind,
    so that launches may be captured in a graph and replayed.

    Args:
        name: what launches of one plan share it by.
        type: ONNX type name of its elements.
        elements: how many; it is there before any size is known.
    """

    name: str
    type: str
    elements: int


Constant = float | bool | str | None
Argument: TypeAlias = "Tensor | Workspace | Persistent | Expr | Constant"


_Buffer = TypeVar("_Buffer", Workspace, Persistent)


@dataclass(frozen=True)
class Kernel:
    """One variant of a Triton kernel: everything that decides its machine code.

    Args:
        function: the ``triton.jit`` function.
        pointers: parameter to ONNX element type; every one is aligned to 16 bytes.
        integers: parameters that are int32 at run time.
        constants: the other parameters, fixed at compile time (None for an absent tensor).
        num_warps, num_stages: Triton's options.
    """

    function: Any
    pointers: Mapping[str, str]
    integers: tuple[str, ...]
    constants: Mapping[str, Constant]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """The function's name, which is the entry point's too."""
        return str(self.function.fn.__name__)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for kernels that compile to the same code."""
        return (
            self.function.fn.__module__,
            self.name,
            tuple(sorted(self.pointers.items())),
            self.integers,
            tuple(sorted((k, repr(v)) for k, v in self.constants.items())),
            self.num_warps,
            self.num_stages,
        )


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Args:
        kernel: what runs.
        grid: blocks along x, y and z.
        arguments: run-time arguments in the order of the kernel's parameters.
    """

    kernel: Kernel
    grid: tuple[Expr, Expr, Expr]
    arguments: tuple[Tensor | Workspace | Persistent | Expr, ...]


@dataclass(frozen=True)
class Case:
    """Launches for the sizes of which ``when`` is not 0; the first case that fits is taken."""

    when: Expr
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class Operand:
    """An input or output of a plan: its port, ONNX type name and shape."""

    name: str
    type: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class Plan:
    """How a chip computes one call of an operator.

    Args:
        op: op type.
        version: the operator's version.
        attributes: the attributes that the kernels were made for.
        inputs, outputs: operands that are there, in schema order.
        cases: tried in order; the last one takes everything.
        label: what tells this plan from its alternatives, for reports.
    """

    op: str
    version: int
    attributes: Mapping[str, Any]
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    cases: tuple[Case, ...]
    label: str = ""

    def case(self, sizes: Mapping[str, int]) -> Case:
        """The case of the given sizes."""
        return next(case for case in self.cases if case.when.value(sizes))

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel once, in the order of the launches."""
        found: dict[tuple[Any, ...], Kernel] = {}
        for case in self.cases:
            for launch in case.launches:
                found.setdefault(launch.kernel.key, launch.kernel)
        return tuple(found.values())

    def workspaces(self) -> tuple[Workspace, ...]:
        """Every scratch buffer once, in the order of the launches."""
        return self._buffers(Workspace)

    def persistents(self) -> tuple[Persistent, ...]:
        """Every buffer that keeps its values, once, in the order of the launches."""
        return self._buffers(Persistent)

    def _buffers(self, kind: type[_Buffer]) -> tuple[_Buffer, ...]:
        found: dict[str, _Buffer] = {}
        for case in self.cases:
            for launch in case.launches:
                for argument in launch.arguments:
                    if not isinstance(argument, kind):
                        continue
                    if found.setdefault(argument.name, argument) != argument:
                        raise ValueError(f"two workspaces are called {argument.name!r}")
        return tuple(found.values())


@dataclass(frozen=True)
class Builder:
    """Makes the launches of a plan from an operator's contract and one call of it.

    Args:
        spec: the operator.
        call: present inputs, attributes, types and static sizes.

    Attributes:
        operands: port to operand, of every input that is there and every output.
    """

    spec: OpSpec
    call: Call
    operands: Mapping[str, Operand] = field(init=False)

    def __post_init__(self) -> None:
        present = (port for port in self.spec.inputs if port.name in self.call.present)
        ports = (*present, *self.spec.outputs)
        object.__setattr__(self, "operands", {port.name: self._operand(port) for port in ports})

    def tensor(self, port: str) -> Tensor | None:
        """The argument of a port; None where the call leaves it out."""
        return Tensor(port) if port in self.operands else None

    def size(self, letter: str) -> Any:
        """The size of an axis: an int, or the :class:`Expr` of the symbol ``B`` or ``T``.

        An int becomes a compile-time constant of a kernel, an expression an argument at run time.
        """
        return self.call.sizes.get(letter, symbol(letter))

    def launch(
        self,
        function: Any,
        grid: tuple[Any, ...],
        num_warps: int = 4,
        num_stages: int = 2,
        **arguments: Argument,
    ) -> Launch:
        """A launch with every parameter of ``function`` given by name.

        Args:
            function: a ``triton.jit`` function.
            grid: one to three integers or expressions.
            num_warps, num_stages: Triton's options.
            arguments: tensors and buffers become pointers, expressions int32; integers, floats,
                booleans, strings and None are compile-time constants.

        Raises:
            TypeError: a parameter is missing, or one is unknown.
        """
        names = list(function.arg_names)
        if set(names) != set(arguments):
            wrong = sorted(set(names) ^ set(arguments))
            raise TypeError(f"{function.fn.__name__}: missing or unknown parameters {wrong}")
        pointers: dict[str, str] = {}
        integers: list[str] = []
        constants: dict[str, Constant] = {}
        given: list[Tensor | Workspace | Persistent | Expr] = []
        for name in names:
            argument = arguments[name]
            if isinstance(argument, (Tensor, Workspace, Persistent, Expr)):
                given.append(argument)
            if isinstance(argument, Tensor):
                pointers[name] = self.operands[argument.port].type
            elif isinstance(argument, (Workspace, Persistent)):
                pointers[name] = argument.type
            elif isinstance(argument, Expr):
                integers.append(name)
            else:
                constants[name] = argument
        kernel = Kernel(function, pointers, tuple(integers), constants, num_warps, num_stages)
        x, y, z = (*map(constant, grid), *[constant(1)] * (3 - len(grid)))
        return Launch(kernel, (x, y, z), tuple(given))

    def plan(self, *cases: Case, label: str = "") -> Plan:
        """The plan of these cases."""
        inputs = tuple(self.operands[p.name] for p in self.spec.inputs if p.name in self.operands)
        return Plan(
            op=self.spec.name,
            version=1,
            attributes=dict(self.call.attributes),
            inputs=inputs,
            outputs=tuple(self.operands[port.name] for port in self.spec.outputs),
            cases=cases,
            label=label,
        )

    def _operand(self, port: Port) -> Operand:
        sizes = dict(self.call.sizes)
        if "K" in sizes:
            sizes["-"] = sizes["K"] - 1  # the axis of a convolution's state
        # "T" and "S" are the call's types of activations and states, others are ONNX's own names.
        kind = self.call.type(port.type) if port.type in "TS" else port.type
        return Operand(port.name, kind, tuple(sizes.get(axis, axis) for axis in port.axes))


ALWAYS: Final = constant(1)
"""The condition of a case that takes everything."""
