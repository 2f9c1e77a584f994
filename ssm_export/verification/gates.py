"""How far a whole model may be from the truth: the one table of gates, with the reason of each.

The gates of one operator are fixed (:data:`OPERATOR`). A whole model adds the rounding of each
layer to the residual stream. Those errors are independent, so they add in squares: a value that
has passed through ``depth`` layers may have ``1 + depth`` times the operator's mean-square error
(one for what feeds the first layer), or ``sqrt(1 + depth)`` times its amplitude. Logits have passed
through all L layers, a state of layer i through i + 1. Every gate of a whole model below is an
operator gate times one of these two factors. What a network makes of its own rounding beyond that
is measured, not guessed: :mod:`ssm_export.verification.rounding`. The same table holds on every
machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

SIGMAS: Final = 6.0
"""An element may be off by this many standard deviations of the error that the mean-square gate
admits: among 1e8 normal deviates the largest is about 6. So one wrong element in a tensor of
millions fails, though it does not show in a mean."""

GREEDY_TOKENS: Final = 256
"""Greedy tokens that are compared with the reference's."""
DRIFT_STEPS: Final = 4096
"""Steps after which the state may still not have drifted."""
LENGTHS: Final = (1, 2, 63, 64, 65)
"""Prompt lengths that are run: one token, two, and both sides of a chunk of 64."""


@dataclass(frozen=True)
class OperatorGate:
    """The gates of one operator against float64 on the same rounded inputs.

    Attributes:
        nmse: normalised mean-square error, Σ(y−r)² / Σr².
        relative: part of an element's error that may grow with the element itself; the relative
            tolerance of the field's public tests of the selective scan.
        absolute: absolute tolerance of the same tests, for outputs whose RMS is about one. The
            element gate of :class:`Gates` never exceeds it, depth aside; a test holds that.
        continuation: relative L2 between the states of a prefill of L+1 tokens and of a prefill
            of L followed by one step: two orders of the same arithmetic.
    """

    nmse: float
    relative: float
    absolute: float
    continuation: float


OPERATOR: Final[Mapping[str, OperatorGate]] = MappingProxyType(
    {
        # fp32: chunking costs at most 7e-7 relative L2, so 1e-5 (nmse 1e-10) is a real fault.
        "fp32": OperatorGate(nmse=1e-10, relative=6e-4, absolute=2e-3, continuation=5e-6),
        # fp16: rounding the operands alone costs 2.3e-4 relative L2, that is 5e-8.
        "fp16": OperatorGate(nmse=2e-7, relative=3e-3, absolute=5e-3, continuation=5e-4),
        # bf16: rounding the operands alone costs 1.8e-3 relative L2, that is 3.2e-6.
        "bf16": OperatorGate(nmse=1e-5, relative=3e-2, absolute=5e-2, continuation=4e-3),
        # Rounding up or down by chance puts an int8 state off by max/127/√6 of its block: 1.4e-2
        # relative L2 where the largest entry is 4.4 times the RMS, that is 2e-4; the largest entry
        # by a step, 1/127; two roundings by √2 as much as one.
        "int8": OperatorGate(nmse=2e-4, relative=8e-3, absolute=9e-2, continuation=2e-2),
    }
)
"""Precision, or type of the state, to the gates of one operator."""

DRIFT: Final[Mapping[str, float]] = MappingProxyType({"fp32": 1e-5, "fp16": 2e-3, "int8": 8e-2})
"""Type of the SSM state to the relative L2 that it may be off by after 4096 steps: a state is
rounded at every step, and forgets as it goes. That comes to 7 times one rounding in fp16 and 6
times in int8. (A bf16 state reaches 4e-2 at half of fp32's bytes, and is refused.)"""


@dataclass(frozen=True)
class Gates:
    """The gates of one bundle.

    Args:
        precision: ``fp32``, ``fp16`` or ``bf16``: what weights and activations are rounded to.
        state_dtype: ``fp32``, ``fp16`` or ``int8``: what the SSM state is rounded to between calls.
        layers: L.
    """

    precision: str
    state_dtype: str
    layers: int

    @property
    def operator(self) -> OperatorGate:
        """The operator gates of the coarser of the two types: a rounded state feeds the layers
        after it just as a rounded activation does."""
        candidates = (OPERATOR[self.precision], OPERATOR[self.state_dtype])
        return max(candidates, key=lambda gate: gate.nmse)

    def nmse(self, depth: int) -> float:
        """Normalised mean-square error of a value that has passed through ``depth`` layers."""
        return self.operator.nmse * (1 + depth)

    def relative(self, depth: int) -> float:
        """The same gate as a relative L2 error: its square root."""
        return math.sqrt(self.nmse(depth))

    def element(self, depth: int) -> tuple[float, float]:
        """``(relative, absolute)``: ``|y − r| ≤ relative·|r| + absolute·RMS(r)`` of each element.

        The absolute part is relative to the RMS of the tensor, because a logit near zero has no
        meaningful relative error: its error is that of the residual stream, whatever its value.
        It is :data:`SIGMAS` standard deviations of the error that :meth:`nmse` admits. The
        relative part stays the operator's at any depth.
        """
        return self.operator.relative, SIGMAS * self.relative(depth)

    def continuation(self, depth: int) -> float:
        """Relative L2 between a prompt in one call and the same prompt with one step at its end."""
        return self.operator.continuation * math.sqrt(1 + depth)

    def repetition(self, depth: int) -> float:
        """Relative L2 between a prompt in one call and in many: each call may add its rounding of
        the state, and what that comes to is what the drift gate of the state's type says."""
        once = max(self.operator.continuation, DRIFT[self.state_dtype])
        return once * math.sqrt(1 + depth)

    def drift(self, depth: int) -> float:
        """Relative L2 of a state against float64 after 4096 steps.

        The larger of the drift gate of the state's type and of the rounding of what feeds the
        state at every step, which no state type can undo.
        """
        once = max(DRIFT[self.state_dtype], math.sqrt(OPERATOR[self.precision].nmse))
        return once * math.sqrt(1 + depth)

    def near_tie(self, rms: float) -> float:
        """The margin top1 − top2 below which either token is right.

        Two logits may each be off by the absolute part of the element gate, so a margin below
        twice that says nothing. ``rms`` is that of the reference's logits.
        """
        return 2 * self.element(self.layers)[1] * rms
