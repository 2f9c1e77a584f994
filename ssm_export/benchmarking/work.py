"""What a bench times: prompts with the first token after them, and decoding at a depth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from ssm_export.benchmarking.timing import timed
from ssm_export.engines.runner import Arrays, Recurrent, Runner
from ssm_export.verification import feeding
from ssm_export.verification.truth import vocabulary

PREFILL: Final = "prefill"
FIRST_TOKEN: Final = "first token"
DECODE: Final = "decode"
PHASES: Final = (PREFILL, FIRST_TOKEN, DECODE)

_SETTLE_S: Final = 0.005
"""Rest before a timed prefill: a CPU runtime's threads spin on for a while after a call and would
slow the next call of the other graph."""
_DECODE_SETTLE_S: Final = 0.05
"""Rest before a block of steps, which are short, for the same reason."""
_BLOCK_S: Final = 0.08
"""A block goes on at least this long where the number of repetitions was not asked for, so that
the median of a short call is of many."""


@dataclass
class Measured:
    """The times of one row of the report.

    Attributes:
        phase: one of :data:`PHASES`.
        tokens: of the prompt of one row, or decoded in one repetition.
        batch: rows.
        depth: tokens that were in the state when it began.
        cuda_graph: whether steps ran in a CUDA graph; None where the runner has none.
        pieces: calls that a prefill took.
        blocks: times of each block in ms; of a prefill, or of one step.
    """

    phase: str
    tokens: int
    batch: int
    depth: int = 0
    cuda_graph: bool | None = None
    pieces: int = 1
    blocks: list[list[float]] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int, int, int, bool | None]:
        """What was measured: the same in two reports that can be compared."""
        return self.phase, self.tokens, self.batch, self.depth, self.cuda_graph

    @property
    def times_ms(self) -> list[float]:
        """The times of every block."""
        return [value for block in self.blocks for value in block]


class Work(Protocol):
    """Something that is repeated in blocks."""

    @property
    def measured(self) -> tuple[Measured, ...]:
        """The rows that its blocks fill."""
        ...

    def warmup_calls(self, asked: int, at: int) -> int:
        """Calls before the clock of block ``at`` starts, where ``asked`` are before the first."""
        ...

    def block(self, repetitions: int, warmup: int, exact: bool) -> None:
        """Warm up, then time one block.

        Args:
            repetitions: of this block.
            warmup: calls before the clock starts.
            exact: no more repetitions than that, however short they are.
        """
        ...

    def alone(self, row: Measured) -> tuple[Callable[[], object], int]:
        """What to call over and over for one of its rows to run alone, and the tokens of all rows
        of the batch that a call processes. Nothing is timed."""
        ...


class PromptWork:
    """A prefill from the initial state and, where steps are wanted, the first token after it."""

    def __init__(self, model: Recurrent, tokens: int, batch: int, first_token: bool) -> None:
        self._model = model
        self._ids = prompt(model, batch, tokens)
        self._state = model.initial_state(batch)
        graph = graph_of(model.runner)
        pieces = -(-tokens // (feeding.longest_chunk(model) or tokens))
        self._prefill = Measured(PREFILL, tokens, batch, pieces=pieces)
        self._first = Measured(FIRST_TOKEN, tokens, batch, cuda_graph=graph, pieces=pieces)
        self._steps = first_token
        self.measured = (self._prefill, self._first) if first_token else (self._prefill,)

    def warmup_calls(self, asked: int, at: int) -> int:
        """One is enough after the first block: a prefill is long."""
        return min(asked, 1) if at else asked

    def block(self, repetitions: int, warmup: int, exact: bool) -> None:
        """Time prefills; the step after each is in the time of the first token only."""
        switch_graph(self._model.runner, self._first.cuda_graph)
        for _ in range(warmup):
            self._once()
        times: list[tuple[float, float, float]] = []
        end = time.perf_counter() + _BLOCK_S
        while len(times) < repetitions or not (exact or time.perf_counter() >= end):
            time.sleep(_SETTLE_S)
            times.append(self._once())
        self._prefill.blocks.append([(read - began) * 1e3 for began, read, _ in times])
        if self._steps:
            self._first.blocks.append([(ended - began) * 1e3 for began, _, ended in times])

    def alone(self, row: Measured) -> tuple[Callable[[], object], int]:
        """The prefill, with the step after it where the row is the first token's."""
        switch_graph(self._model.runner, self._first.cuda_graph)
        steps = row is self._first
        return partial(self._once, steps), row.batch * (row.tokens + steps)

    def _once(self, steps: bool | None = None) -> tuple[float, float, float]:
        began = time.perf_counter()
        running = feeding.Stepper(self._model, self._state)
        logits = running.prefill(self._ids)
        read = time.perf_counter()
        if self._steps if steps is None else steps:
            running(np.asarray(logits)[:, -1].argmax(axis=-1)[:, None])
        return began, read, time.perf_counter()


class DecodeWork:
    """Tokens one by one, from a state that ``depth`` tokens have gone into."""

    def __init__(
        self, model: Recurrent, tokens: int, batch: int, depth: int, graph: bool | None
    ) -> None:
        self._model = model
        self._graph = graph
        ids = prompt(model, batch, tokens)
        self._columns = [ids[:, at : at + 1] for at in range(tokens)]
        self._state: Arrays | None = None
        self._row = Measured(DECODE, tokens, batch, depth, graph)
        self.measured = (self._row,)

    def warmup_calls(self, asked: int, at: int) -> int:
        """As many before every block: the other graph has run meanwhile."""
        return asked

    def block(self, repetitions: int, warmup: int, exact: bool) -> None:
        """Time every step of each repetition; a repetition begins at the depth again."""
        switch_graph(self._model.runner, self._graph)
        state = self._begin()
        time.sleep(_DECODE_SETTLE_S)
        step = feeding.Stepper(self._model, state)
        for count in range(warmup):
            step(self._columns[count % len(self._columns)])
        times: list[float] = []
        end, calls = time.perf_counter() + _BLOCK_S, 0
        while calls < repetitions or not (exact or time.perf_counter() >= end):
            step = feeding.Stepper(self._model, state)
            times += [timed(partial(step, column)) for column in self._columns]
            calls += 1
        self._row.blocks.append(times)

    def alone(self, row: Measured) -> tuple[Callable[[], object], int]:
        """A repetition: from the depth, every column."""
        switch_graph(self._model.runner, self._graph)
        state = self._begin()

        def repetition() -> None:
            step = feeding.Stepper(self._model, state)
            for column in self._columns:
                step(column)

        return repetition, row.batch * len(self._columns)

    def _begin(self) -> Arrays:
        if self._state is None:
            row = self._row
            self._state = self._model.initial_state(row.batch)
            if row.depth:
                ids = prompt(self._model, row.batch, row.depth)
                _, self._state = feeding.prefill(self._model, ids, self._state)
        return self._state


def prompt(model: Recurrent, batch: int, tokens: int) -> np.ndarray:
    """Random token ids (B,T), the same for the same sizes."""
    size = vocabulary(model.bundle.manifest)
    return np.random.default_rng(0).integers(0, size, (batch, tokens), dtype=np.int64)


def graph_of(runner: Runner) -> bool | None:
    """Whether the runner's steps run in a CUDA graph; None where it has none."""
    found = getattr(runner, "cuda_graph", None)
    return found if isinstance(found, bool) else None


def switch_graph(runner: Runner, wanted: bool | None) -> None:
    """Switch CUDA graphs on or off; nothing for None."""
    if wanted is not None and graph_of(runner) is not wanted:
        changeable: Any = runner
        changeable.cuda_graph = wanted
