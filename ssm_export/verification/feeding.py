"""Feeding a model: prompts in the pieces that its engine takes, and then token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from ssm_export.engines.runner import Arrays, Recurrent, Resident


def longest_chunk(model: Recurrent) -> int | None:
    """The most tokens that one call of the prefill graph takes; None where there is no limit."""
    limit: int | None = getattr(model.runner, "max_chunk", None)
    return limit


def prefill(
    model: Recurrent,
    input_ids: np.ndarray,
    state: Mapping[str, np.ndarray] | None = None,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, Arrays]:
    """Like :meth:`Recurrent.prefill`, in pieces where the engine's longest chunk asks for it.

    Args:
        input_ids: (B,T) integers.
        state: the ``past_*`` arrays; the initial state when None.
        lengths: (B,) valid tokens of each row, for ragged bundles.

    Returns:
        logits (B,1,V) of each row's last token, or (B,T,V) where the graph gives all; the state.
    """
    tokens = input_ids.shape[1]
    limit = longest_chunk(model)
    if limit is None or tokens <= limit:
        return model.prefill(input_ids, state, lengths)
    whole, rest = divmod(tokens, limit)
    return in_pieces(model, input_ids, [limit] * whole + [rest] * (rest > 0), state, lengths)


def in_pieces(
    model: Recurrent,
    input_ids: np.ndarray,
    pieces: Sequence[int],
    state: Mapping[str, np.ndarray] | None = None,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, Arrays]:
    """Prefill in calls of ``pieces`` tokens, which sum to T; otherwise like :func:`prefill`."""
    rows = input_ids.shape[0]
    past: Mapping[str, np.ndarray] = model.initial_state(rows) if state is None else state
    parts: list[np.ndarray] = []
    start = 0
    for count in pieces:
        left = None if lengths is None else np.clip(lengths - start, 0, count)
        logits, past = model.prefill(input_ids[:, start : start + count], past, left)
        parts.append(logits)
        start += count
    if model.bundle.manifest.logits == "all":
        return np.concatenate(parts, axis=1), dict(past)
    if lengths is None:
        return parts[-1], dict(past)
    ends = np.cumsum(pieces)
    last_piece = np.searchsorted(ends, np.maximum(lengths, 1))
    picked = [parts[piece][row : row + 1] for row, piece in enumerate(last_piece)]
    return np.concatenate(picked), dict(past)


class Stepper:
    """One token per row and call, each from the state of the one before.

    A runner that can keep the states on its device does (:class:`Resident`), so only ids and
    logits are copied.

    Args:
        model: the loaded bundle.
        state: the ``past_*`` arrays to begin with.
    """

    def __init__(self, model: Recurrent, state: Mapping[str, np.ndarray]) -> None:
        self._model = model
        self._state = state
        self._resident: Resident | None = None
        if hasattr(model.runner, "advance") and hasattr(model.runner, "load_state"):
            self._resident = cast(Resident, model.runner)
            self._resident.load_state(state)

    def __call__(self, input_ids: np.ndarray) -> np.ndarray:
        """input_ids (B,1) → logits (B,1,V)."""
        if self._resident is None:
            logits, self._state = self._model.step(input_ids, self._state)
            return logits
        lengths = None
        if self._model.bundle.manifest.ragged:
            lengths = np.ones(input_ids.shape[0], dtype=np.int32)
        return self._resident.advance("step", input_ids.astype(np.int64), lengths)
