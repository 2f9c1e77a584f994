"""How a parameter of a layer comes from the tensors of a checkpoint.

A transformation that can be made once at conversion is never made in the graph: weights are
transposed to the orientation in which they are multiplied, and A = −exp(A_log) is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """A change made at conversion, and the shape its stored tensor has.

    Args:
        name: for messages.
        apply: stored tensor to parameter.
        stored_shape: shape of the parameter to shape of the stored tensor.
    """

    name: str
    apply: Callable[[torch.Tensor], torch.Tensor]
    stored_shape: Callable[[Shape], Shape]


SAME = Transform("as stored", lambda t: t, lambda s: s)
TRANSPOSED = Transform("transposed", lambda t: t.t(), lambda s: (s[1], s[0]))
TAPS = Transform("conv taps", lambda t: t.squeeze(1), lambda s: (s[0], 1, s[1]))
NEGATIVE_EXP = Transform("-exp", lambda t: -torch.exp(t.double()), lambda s: s)


@dataclass(frozen=True)
class Stored:
    """Where one parameter comes from.

    Args:
        name: stored name, relative to the module that owns the parameter.
        transform: what is done to the stored tensor.
    """

    name: str
    transform: Transform = SAME


@dataclass(frozen=True)
class ParameterSource:
    """A parameter of a model and the stored tensor it is made from."""

    parameter: str
    shape: Shape
    dtype: torch.dtype
    tensor: str
    stored_shape: Shape
    transform: Transform


def parameter_sources(model: nn.Module) -> Iterator[ParameterSource]:
    """Walk a model and say for each parameter which stored tensor makes it.

    Its modules declare ``STORED``: parameter name to :class:`Stored`. Module paths are stored
    names: a family names its modules as its checkpoints do.
    """
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            stored: Stored = module.STORED[name]
            yield ParameterSource(
                parameter=f"{path}.{name}",
                shape=tuple(parameter.shape),
                dtype=parameter.dtype,
                tensor=f"{path}.{stored.name}",
                stored_shape=stored.transform.stored_shape(tuple(parameter.shape)),
                transform=stored.transform,
            )
