"""What a mixer says about the states it carries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MixerState:
    """One state of a mixer, without the batch axis.

    Args:
        kind: ``conv`` or ``ssm``; it names the state in the graph (``past_conv.3``).
        shape: sizes after the batch axis.
        layout: the axes in letters, batch included, such as ``"B,D,N"``.
        recurrent: an SSM state, which has the state type; otherwise it has the model's type.
    """

    kind: str
    shape: tuple[int, ...]
    layout: str
    recurrent: bool
