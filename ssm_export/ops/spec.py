"""OpSpec: the contract of one operator, and the only thing that tests, graphs and kernels share.

An operator is one node of domain ``ssm_export`` with a meaning. Its spec holds the schema, a
float64 sequential reference, a generator of valid inputs, the function bodies and the tolerances.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

DOMAIN: Final = "ssm_export"
VERSION: Final = 1
OPSET: Final = 20

AttributeValue = int | float | str


@dataclass(frozen=True)
class Port:
    """One input or output of an operator.

    Args:
        name: its name in the schema.
        axes: letters of the glossary, such as ``"BTD"``; ``-`` marks K−1 taps.
        type: ``"T"`` the I/O type (fp32, fp16, bf16), ``"S"`` the state type (fp32, fp16),
            ``"float32"`` always fp32, or ``"int32"``.
        optional: whether a call may leave it out.
        doc: one line.
    """

    name: str
    axes: str
    type: str = "T"
    optional: bool = False
    doc: str = ""


@dataclass(frozen=True)
class Call:
    """How one node calls an operator: everything that a function body may depend on.

    Args:
        present: names of the inputs that are there.
        attributes: every attribute, defaults filled in.
        sizes: the axes that are static, letter to integer (never B; T only in a step graph).
        types: ``T`` and ``S`` to an ONNX type name such as ``float16``; float32 when left out.
    """

    present: frozenset[str]
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)

    def type(self, letter: str) -> str:
        """The ONNX type name of type letter ``T`` or ``S``."""
        return self.types.get(letter, "float32")


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be from the float64 reference on the same rounded inputs.

    ``|y − r| ≤ absolute + relative·|r|`` for every element, and the normalised mean-square error
    ``Σ(y−r)² / Σr²`` stays at or below ``nmse``.
    """

    relative: float
    absolute: float
    nmse: float


Inputs = dict[str, np.ndarray]
Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class OpSpec:
    """The contract of one operator.

    Args:
        name: the op type, in the domain ``ssm_export``.
        doc: what it computes: equation, shapes, source.
        inputs: ports in schema order; a time axis implies the last, ``sequence_lengths``.
        outputs: ports in schema order.
        attributes: name to default.
        reference: float64 sequential truth: ``reference(inputs, attributes) -> outputs``. It takes
            arrays of any float type, computes in float64 token by token, and gives float64.
        make_inputs: ``make_inputs(rng, sizes, omit, ragged) -> inputs`` in float64; valid only
            (A < 0, dt > 0 after its transform). ``sizes`` maps letters to integers.
        bodies: ``step`` and ``chunked``: functions ``body(op, call, *inputs)`` traced by
            onnxscript into a FunctionProto; an absent input is ``None``.
        tolerances: I/O type (``fp32``, ``fp16``, ``bf16``) to tolerance.
        sizes: default sizes for tests, letter to integer.
    """

    name: str
    doc: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attributes: Mapping[str, AttributeValue]
    reference: Callable[[Inputs, Mapping[str, AttributeValue]], Outputs]
    make_inputs: Callable[..., Inputs]
    bodies: Mapping[str, Callable[..., Any]]
    tolerances: Mapping[str, Tolerance]
    sizes: Mapping[str, int]

    def schema(self) -> onnx.defs.OpSchema:
        """The ONNX schema; register it once with :func:`register_schemas`."""
        from ssm_export.ops import _onnx

        return _onnx.schema(self)

    def function(self, form: str, call: Call) -> ir.Function:
        """The function body ``step`` or ``chunked``, specialised for one call."""
        from ssm_export.ops import _onnx

        return _onnx.function(self, form, call)
