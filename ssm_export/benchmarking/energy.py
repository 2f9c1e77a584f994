"""Energy of each row, in a pass of its own: the row runs alone while the power is sampled.

The timed blocks cannot say it. Their rows take turns faster than the power is sampled, and some
drivers give the mean of a second, so every row would get about the mean of all rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ssm_export.benchmarking.comparison import row_name
from ssm_export.benchmarking.work import Measured, Work
from ssm_export.progress import Task
from ssm_export.telemetry import FEWEST_SAMPLES, Recorder

ALONE_S: Final = 2.5
"""How long a row runs alone at least, after it has settled: 25 samples, where five are the fewest
that give an energy."""


@dataclass(frozen=True)
class Pass:
    """One row, alone and without a pause.

    Attributes:
        row: which.
        begin, end: in seconds of ``time.perf_counter``.
        tokens: of all rows of the batch that were processed between.
    """

    row: Measured
    begin: float
    end: float
    tokens: int


def run_alone(
    work: Iterable[Work], recorder: Recorder, repetitions: int, task: Task
) -> tuple[Pass, ...]:
    """Run every row by itself, long enough for its energy.

    A row runs for :data:`ALONE_S` and for ``repetitions`` at least. What it does before the
    samples are of it alone is not in the pass.

    Args:
        work: whose rows are to be run.
        recorder: that samples the power meanwhile.
        repetitions: fewest calls of each row.
        task: advanced by one for each row.
    """
    passes = []
    for piece in work:
        for row in piece.measured:
            call, tokens = piece.alone(row)
            _repeat(call, recorder.settle_s, 1)
            begin = time.perf_counter()
            calls = _repeat(call, ALONE_S, repetitions)
            passes.append(Pass(row, begin, time.perf_counter(), calls * tokens))
            task.advance()
    return tuple(passes)


def energies(passes: Sequence[Pass], recorder: Recorder) -> Mapping[int, float]:
    """mJ of a token, by the ``id`` of its row; rows with too few samples are left out.

    Args:
        passes: of :func:`run_alone`.
        recorder: stopped.
    """
    found = {}
    for one in passes:
        joules = recorder.energy_j(one.begin, one.end)
        if joules is not None:
            found[id(one.row)] = joules * 1e3 / one.tokens
    return found


def without_energy(passes: Sequence[Pass], recorder: Recorder) -> tuple[str, ...]:
    """What to say of the rows that ran alone and have no energy all the same."""
    said = []
    for one in passes:
        samples = recorder.power_samples(one.begin, one.end)
        if samples < FEWEST_SAMPLES:
            said.append(f"{row_name(one.row)} ({samples} in {one.end - one.begin:.1f} s)")
    few = f"fewer than {FEWEST_SAMPLES} samples of the power came while the row ran alone"
    return (f"No energy where {few}: {'; '.join(said)}.",) if said else ()


def _repeat(call: Callable[[], object], seconds: float, least: int) -> int:
    """Call for so long and so often at least; how often it was."""
    end, calls = time.perf_counter() + seconds, 0
    while calls < least or time.perf_counter() < end:
        call()
        calls += 1
    return calls
