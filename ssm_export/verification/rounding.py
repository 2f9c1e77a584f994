"""What PyTorch itself loses by computing in the precision of a bundle: the floor of every gate.

A network does not only add the rounding of its layers, it also amplifies it, by a factor that is
its own: ×1.3 to ×1.5 per layer at random initialisation, so that 24 such layers of Mamba in fp32
are off by an NMSE of 5e-8 in any framework. No fixed table knows that factor, and a graph cannot be
asked to be better than the model it stands for. So the recorder also runs the torch model in the
bundle's own precision and keeps its errors against float64. A graph may have up to
:data:`MARGIN` times PyTorch's amplitude error, or what the table of gates allows if that is more.
An element may also be off by :data:`~ssm_export.verification.gates.SIGMAS` times the relative L2
error of its tensor, as a share of itself: what an input loses scales what is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from ssm_export.verification.measure import LOGITS, rms, squared_error

MARGIN: Final = 2.0
"""Two runs that round at different places differ in their errors, but not in the size of them."""

Recorded = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Kind of case to tensor to ``nmse`` and ``element``, as the manifest keeps them. A kind may have
the name of a runner behind it (:func:`of_runner`)."""


@dataclass(frozen=True)
class Floor:
    """PyTorch's own error in one tensor.

    Attributes:
        nmse: normalised mean-square error of the worst row (of logits: of the worst position).
        element: the largest error of an element, as a share of the RMS of its row.
    """

    nmse: float = 0.0
    element: float = 0.0


def of_runner(kind: str, runner: str) -> str:
    """The kind under which errors are kept that one runner alone has beside those of the bundle."""
    return f"{kind} {runner}"


def seen_by(recorded: Recorded, runner: str) -> Recorded:
    """What holds for a runner: its own errors where there are any, and else the bundle's."""
    own = {kind: recorded.get(of_runner(kind, runner), found) for kind, found in recorded.items()}
    return {kind: found for kind, found in own.items() if " " not in kind}


def floor_of(recorded: Recorded, kind: str, tensor: str) -> Floor:
    """The floor of a tensor in a kind of case; of the prompts where that kind has none."""
    found = recorded.get(kind) or recorded.get("prefill") or {}
    return Floor(**found[tensor]) if tensor in found else Floor()


def measure_floor(tensor: str, got: np.ndarray, want: np.ndarray) -> dict[str, float]:
    """How far ``got`` is from ``want``, both (B, …), logits (B,T,V), in the terms of a floor."""
    if tensor == LOGITS:  # every position is a row: a check may look at one alone
        got, want = (array.reshape(-1, array.shape[-1]) for array in (got, want))
    nmse, _ = squared_error(got, want)
    element = max(
        float(np.abs(one.astype(np.float64) - other).max()) / max(rms(other), 1e-300)
        for one, other in zip(got, want, strict=True)
    )
    return {"nmse": nmse, "element": element}
