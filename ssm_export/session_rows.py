"""The rows of a session: what each has read, while tokens are given to all of them at once."""

from __future__ import annotations

import numpy as np

from ssm_export.engines.runner import Recurrent
from ssm_export.prompts import no_tokens
from ssm_export.state import Owner, State
from ssm_export.verification.feeding import Stepper


class Rows:
    """B rows: their states in the runner, their logits, and how many tokens each has read.

    Args:
        model: the loaded bundle.
        state: where they begin.

    Attributes:
        logits: (B,V) after each row's last token; None before the first.
        tokens: (B,) int64, how many each has read.
    """

    def __init__(self, model: Recurrent, state: State) -> None:
        self._owner = state.owner
        self._stepper = Stepper(model, state.arrays())
        self.logits = state.last_logits()
        self.tokens = state.tokens_read().copy()
        self._chosen: np.ndarray | None = None
        self._held: dict[int, State] = {}

    @classmethod
    def initial(cls, model: Recurrent, owner: Owner, batch: int) -> Rows:
        """``batch`` rows that have read nothing."""
        nothing = np.zeros(batch, dtype=np.int64)
        states = model.initial_state(batch)
        return cls(model, State(owner, states, None, nothing, tuple(range(batch))))

    def __len__(self) -> int:
        """B."""
        return len(self.tokens)

    def prefill(self, ids: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
        """Read (B,T) tokens, of which ``counts`` (B,) count → logits (B,1,V) or (B,T,V)."""
        silent = None if counts is None else counts == 0
        if silent is not None and silent.any() and self.logits is None:
            raise no_tokens(f"row {int(silent.argmax())} has no tokens yet and is given none")
        logits = self._stepper.prefill(ids, counts)
        if counts is None:
            self.logits = logits[:, -1].copy()  # the caller may change what it is given
            self.tokens += ids.shape[1]
            return logits
        # Graphs that give the logits of every position give them of the padding too.
        last = np.maximum(counts - 1, 0) if logits.shape[1] > 1 else np.zeros_like(counts)
        picked = logits[np.arange(len(ids)), last]
        assert silent is not None
        before = picked if self.logits is None else self.logits
        self.logits = np.where(silent[:, None], before, picked)
        self.tokens += counts
        return logits

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Read (B,1) tokens → logits (B,1,V)."""
        logits = self._stepper(ids)
        self.logits = logits[:, -1].copy()
        self.tokens += 1
        return logits

    def choose(self, tokens: tuple[int | None, ...]) -> None:
        """Note what is to be read next, None of a row that has ended and is held where it is."""
        ended = {row for row, token in enumerate(tokens) if token is None}
        if ended - self._held.keys():
            now = self.state()
            self._held.update((row, now.select([row])) for row in ended - self._held.keys())
        self._chosen = np.array([[token or 0] for token in tokens], dtype=np.int64)

    def read_chosen(self) -> None:
        """Read what was noted; rows that have ended read a token that :meth:`settle` undoes."""
        if self._chosen is not None:
            ids, self._chosen = self._chosen, None
            self.step(ids)

    def settle(self) -> None:
        """Read what was noted, and give the rows that are held their state back."""
        self.read_chosen()
        if self._held:
            whole = self.state().replaced(self._held)
            self._held.clear()
            self._stepper.load(whole.arrays())
            self.logits, self.tokens = whole.last_logits(), whole.tokens_read().copy()

    def state(self) -> State:
        """Where they are now, as a value."""
        stored, rows = self._stepper.read(), tuple(range(len(self)))
        return State(self._owner, stored, self.logits, self.tokens.copy(), rows)
