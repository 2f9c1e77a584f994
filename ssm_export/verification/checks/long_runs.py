"""Many tokens in a row: the state after 4096 steps, and 256 greedy tokens."""

from __future__ import annotations

from typing import Final

import numpy as np

from ssm_export.engines.runner import Arrays
from ssm_export.verification import feeding
from ssm_export.verification.context import Context, CurvePoint, Outcome
from ssm_export.verification.gates import DRIFT_STEPS
from ssm_export.verification.measure import Measurement, rms
from ssm_export.verification.truth import NotRun

MOST_CURVE_BYTES: Final = 1 << 30
"""The curve of the drift keeps the states of a prefill at every one of its points; above this size
it is left out."""


def drift(context: Context) -> Outcome:
    """The states and the last logits after 4096 steps of the step graph, and after one prefill.

    Both are held to the truth, which knows the end alone. The curve says how the steps leave a
    prefill of the same tokens on the way there.
    """
    case = context.truth.case("drift")
    ids = case.input_ids
    tokens = ids.shape[1]
    if tokens < DRIFT_STEPS:
        raise NotRun(f"the recorded drift vector has {tokens} tokens, not {DRIFT_STEPS}")
    if case.logits is None:
        raise NotRun("the drift vector has no logits")
    truth = case.logits, case.states
    logits, state = feeding.prefill(context.model, ids)
    run = f"prefill of {tokens} tokens"
    found = context.same(run, (logits, state), truth, context.gates.drift, "drift")
    on_the_way = _prefills(context, ids)
    curve: list[CurvePoint] = []
    task = context.progress.task("drift", total=tokens)
    state = context.model.initial_state(ids.shape[0])
    for position in range(tokens):
        logits, state = context.model.step(ids[:, position : position + 1], state)
        if position + 1 in on_the_way:
            whole = on_the_way.pop(position + 1)
            curve.append(_point(context, position + 1, (logits, state), whole))
        task.advance()
    found += context.same(f"{tokens} steps", (logits, state), truth, context.gates.drift, "drift")
    return Outcome(found, f"{tokens} steps", tuple(curve))


def _prefills(context: Context, ids: np.ndarray) -> dict[int, tuple[np.ndarray, Arrays]]:
    """Logits and states of prefills of 1, 2, 4, … tokens of ``ids`` (B,T), each from the one
    before; nothing where they are too big to be kept."""
    tokens = ids.shape[1]
    lengths = [1 << power for power in range(tokens.bit_length()) if 1 << power < tokens]
    lengths.append(tokens)
    per_row = sum(state.bytes_per_row for state in context.manifest.states)
    if per_row * ids.shape[0] * len(lengths) > MOST_CURVE_BYTES:
        return {}
    found: dict[int, tuple[np.ndarray, Arrays]] = {}
    state = context.model.initial_state(ids.shape[0])
    done = 0
    for length in lengths:
        logits, state = feeding.prefill(context.model, ids[:, done:length], state)
        found[length] = logits[:, -1:], state
        done = length
    return found


def _point(
    context: Context,
    steps: int,
    got: tuple[np.ndarray, Arrays],
    want: tuple[np.ndarray, Arrays],
) -> CurvePoint:
    """The worst tensor after ``steps`` steps against a prefill of as many tokens."""
    measured = context.same(f"{steps} steps", got, want, context.gates.drift, "drift")
    worst = max(measured, key=lambda item: item.value)
    return CurvePoint(steps, worst.value, worst.place.tensor if worst.place else "")


def greedy_tokens(context: Context) -> Outcome:
    """The reference's 256 greedy tokens, wherever its margin is no near tie.

    The graph is fed the reference's tokens, so it is held to it at every position and not only
    until the first near tie, at which two right models may part for good.
    """
    case = context.truth.case("generate")
    tokens, margins = case.tokens, case.margins
    if tokens is None or margins is None:
        raise NotRun(f"the case '{case.name}' has no tokens")
    scale = context.truth.case("prefill").logits
    if scale is None:
        raise NotRun("the scale of the logits is not known")
    near = context.near_tie(rms(scale))
    count = tokens.shape[1]
    task = context.progress.task("greedy tokens", total=count)
    logits, state = feeding.prefill(context.model, case.input_ids)
    disagreements, first = 0, ""
    agreed = 0
    for position in range(count):
        last = logits[:, -1].astype(np.float64)
        finite = np.isfinite(last).all(axis=1)
        chosen = np.where(finite, last.argmax(axis=1), -1)
        wrong = (chosen != tokens[:, position]) & (margins[:, position] >= near) | ~finite
        if wrong.any():
            row = int(wrong.argmax())
            first = first or (
                f"token {position}: {chosen[row]}, expected {tokens[row, position]} "
                f"(margin {margins[row, position]:.3g}, a near tie is below {near:.3g})"
            )
            disagreements += int(wrong.sum())
        elif not disagreements:
            agreed = position + 1
        if position + 1 < count:
            logits, state = context.model.step(tokens[:, position : position + 1], state)
        task.advance()
    compared = int((margins >= near).sum())
    if compared == 0 and not disagreements:
        raise NotRun(f"each of the {tokens.size} margins is a near tie (below {near:.3g})")
    found = Measurement("greedy tokens", None, "disagreements", float(disagreements), 0.0, first)
    ties = tokens.size - compared
    detail = f"{compared} tokens compared" + (f", {ties} near ties not" if ties else "")
    return Outcome([found], f"{detail}; agrees for {agreed}" if disagreements else detail)
