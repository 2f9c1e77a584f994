"""Feeding a model: prompts in the pieces that its engine takes, and then token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssm_export.engines.runner import Arrays, Recurrent, resident


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
    pieces = pieces_of(model, input_ids.shape[1])
    if len(pieces) == 1:
        return model.prefill(input_ids, state, lengths)
    return in_pieces(model, input_ids, pieces, state, lengths)


def pieces_of(model: Recurrent, tokens: int) -> list[int]:
    """The lengths of the calls that a prompt of ``tokens`` takes."""
    limit = longest_chunk(model) or tokens
    whole, rest = divmod(tokens, limit)
    return [limit] * whole + [rest] * (rest > 0)


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

    def call(ids: np.ndarray, left: np.ndarray | None) -> np.ndarray:
        nonlocal past
        logits, past = model.prefill(ids, past, left)
        return logits

    every = model.bundle.manifest.logits == "all"
    return _joined(call, input_ids, pieces, lengths, every), dict(past)


def _joined(
    call: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
    input_ids: np.ndarray,
    pieces: Sequence[int],
    lengths: np.ndarray | None,
    every: bool,
) -> np.ndarray:
    """The logits of a prompt that ``call`` is given in pieces: what one call would have given."""
    parts: list[np.ndarray] = []
    start = 0
    for count in pieces:
        left = None if lengths is None else np.clip(lengths - start, 0, count)
        parts.append(call(input_ids[:, start : start + count], left))
        start += count
    if every:
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    if lengths is None:
        return parts[-1]
    ends = np.cumsum(pieces)
    last_piece = np.searchsorted(ends, np.maximum(lengths, 1))
    picked = [parts[piece][row : row + 1] for row, piece in enumerate(last_piece)]
    return np.concatenate(picked)


class Stepper:
    """A model and the state it is in: tokens go in, logits come out, the state stays.

    A runner that can keep the states on its device does
    (:class:`~ssm_export.engines.runner.Resident`), so only ids and logits are copied.

    Args:
        model: the loaded bundle.
        state: the ``past_*`` arrays to begin with.
    """

    def __init__(self, model: Recurrent, state: Mapping[str, np.ndarray]) -> None:
        self._model = model
        self._resident = resident(model)
        self._ragged = model.bundle.manifest.ragged
        self._resident.load_state(state)

    def __call__(self, input_ids: np.ndarray) -> np.ndarray:
        """input_ids (B,1) → logits (B,1,V)."""
        return self._advance("step", input_ids, None)

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """input_ids (B,T) → logits (B,1,V), or (B,T,V); in pieces where the engine asks for it."""
        return _joined(
            lambda ids, left: self._advance("prefill", ids, left),
            input_ids,
            pieces_of(self._model, input_ids.shape[1]),
            lengths,
            self._model.bundle.manifest.logits == "all",
        )

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from these ``past_*`` arrays."""
        self._resident.load_state(state)

    def read(self) -> Arrays:
        """The states under their ``past_*`` names."""
        return self._resident.read_state()

    def _advance(self, form: str, input_ids: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
        taken: np.ndarray | None = None
        if self._ragged:
            rows, tokens = input_ids.shape
            full = np.full(rows, tokens) if lengths is None else lengths
            taken = np.asarray(full, dtype=np.int32)
        return self._resident.advance(form, np.ascontiguousarray(input_ids, np.int64), taken)
