"""How far a model has drifted after many steps, one token at a time.

The model under test takes its own graph of one token, as a device would. The reference reads the
same tokens through its prefill graph in long pieces, which rounds its state only between them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ssm_export.bundle import SSM
from ssm_export.engines.runner import Arrays, Recurrent
from ssm_export.progress import SILENT, Progress
from ssm_export.quantization.state import RoundedStates
from ssm_export.verification import feeding
from ssm_export.verification.measure import squared_error

STEPS: Final = (4096, 65536)
LIMIT_SECONDS: Final = 600.0
_PIECE: Final = 1024
_TRIED: Final = 32
"""Steps that are timed before anything is promised."""


@dataclass(frozen=True)
class DriftPoint:
    """How far the model is from its reference after so many steps.

    Attributes:
        steps: tokens that were read.
        state_error: relative L2 of the worst row of the worst SSM state.
        state: that state's name.
        logits_error: relative L2 of the worst row of the logits.
        seconds: that the steps took since the first token.
    """

    steps: int
    state_error: float
    state: str
    logits_error: float
    seconds: float


@dataclass(frozen=True)
class DriftNotRun:
    """Steps that were not run, and why."""

    steps: int
    reason: str


Drift = list[DriftPoint | DriftNotRun]


def measure_drift(
    model: Recurrent,
    reference: Recurrent,
    tokens: np.ndarray,
    steps: Sequence[int] = STEPS,
    *,
    limit_seconds: float = LIMIT_SECONDS,
    progress: Progress = SILENT,
) -> Drift:
    """Compare states and logits of two models that read the same tokens.

    Args:
        model: under test; one token per call, from the initial state.
        reference: what it should compute: the float bundle with an fp32 state.
        tokens: (T,) or (B,T) integers.
        steps: numbers of tokens after which to compare.
        limit_seconds: a point that would end later than this, going by the steps so far, is not
            run, nor are those after it.
        progress: shows the steps.

    Returns:
        For each of ``steps``, in rising order, the errors or the reason why there are none. A state
        that is not finite is infinitely far off.
    """
    ids = np.atleast_2d(np.asarray(tokens, dtype=np.int64))
    rows, available = ids.shape
    wanted = sorted(set(steps))
    found: Drift = []
    truth = _Reader(reference, ids)
    state: Mapping[str, np.ndarray] = model.initial_state(rows)
    logits = np.empty(0)
    done, began = 0, time.perf_counter()
    task = progress.task("drift", total=min(wanted[-1], available) if wanted else 0)
    for target in wanted:
        reason = f"there are {available} tokens" if target > available else ""
        for stop in () if reason else sorted({min(done + _TRIED, target), target}):
            reason = _too_long(done, target, time.perf_counter() - began, limit_seconds)
            if reason:
                break
            for position in range(done, stop):
                logits, state = model.step(ids[:, position : position + 1], state)
                task.advance()
            done = stop
        if reason:
            found.append(DriftNotRun(target, reason))
            continue
        seconds = time.perf_counter() - began
        found.append(_compare(target, model, (logits, state), truth, seconds))
    return found


def state_drift(
    model: Recurrent,
    tokens: np.ndarray,
    dtypes: Sequence[str] = ("fp16", "int8"),
    steps: Sequence[int] = STEPS,
    *,
    block: int = 0,
    limit_seconds: float = LIMIT_SECONDS,
    progress: Progress = SILENT,
) -> dict[str, Drift]:
    """What a type of the state costs by itself: the same weights, their state rounded or not.

    Args:
        model: a bundle with an fp32 state, of any weights; it is its own reference, and its state
            is rounded by numpy, so no bundle with another state is needed.
        tokens, steps, limit_seconds, progress: as in :func:`measure_drift`, the limit for each.
        dtypes: types of the state.
        block: entries that share a scale of an int8 state; the whole row when 0.

    Returns:
        Type to what :func:`measure_drift` says.
    """
    return {
        dtype: measure_drift(
            RoundedStates(model, dtype, block),
            model,
            tokens,
            steps,
            limit_seconds=limit_seconds,
            progress=progress,
        )
        for dtype in dtypes
    }


def _too_long(done: int, target: int, elapsed: float, limit: float) -> str:
    """Why the steps up to ``target`` are not run; empty where they are, or nothing is known yet."""
    if not done:
        return ""
    total = elapsed * target / done
    if total <= limit:
        return ""
    each = 1e3 * elapsed / done
    return f"it would take {total:.0f} s ({each:.2g} ms a step), the limit is {limit:.0f} s"


class _Reader:
    """Reads tokens by the prefill graph, and goes on from where it was."""

    def __init__(self, model: Recurrent, ids: np.ndarray) -> None:
        self._model, self._ids = model, ids
        self._state: Mapping[str, np.ndarray] = model.initial_state(ids.shape[0])
        self._logits = np.empty(0)
        self._done = 0

    def after(self, tokens: int) -> tuple[np.ndarray, Arrays]:
        """Logits of the last and the states after the first ``tokens`` tokens."""
        for begin, end in self._pieces(tokens):
            self._logits, self._state = feeding.prefill(
                self._model, self._ids[:, begin:end], self._state
            )
        self._done = max(self._done, tokens)
        return self._logits[:, -1:], self._model.real_states(self._state)

    def _pieces(self, tokens: int) -> Iterator[tuple[int, int]]:
        for begin in range(self._done, tokens, _PIECE):
            yield begin, min(begin + _PIECE, tokens)


def _compare(
    steps: int,
    model: Recurrent,
    got: tuple[np.ndarray, Mapping[str, np.ndarray]],
    truth: _Reader,
    seconds: float,
) -> DriftPoint:
    logits, states = truth.after(steps)
    real = model.real_states(got[1])
    kinds = {spec.name_in for spec in model.states if spec.kind == SSM}
    errors = {name: _relative(real[name], states[name]) for name in states if name in kinds}
    worst = max(errors, key=lambda name: errors[name])
    return DriftPoint(steps, errors[worst], worst, _relative(got[0][:, -1:], logits), seconds)


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    return math.sqrt(squared_error(got, want)[0])
