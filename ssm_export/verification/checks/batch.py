"""Rows of a batch do not know of each other, and padding is not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from ssm_export.bundle import SSM_SCALE
from ssm_export.engines.runner import Arrays
from ssm_export.verification import feeding
from ssm_export.verification.context import Context, Outcome, rows_of
from ssm_export.verification.measure import Measurement
from ssm_export.verification.truth import NotRun, vocabulary

HUGE: Final = 1e4
"""A state that stands out a thousandfold from any real one."""
HUGE_FP16: Final = 1e2
"""The same where activations overflow at 65504."""
MOST_TOKENS: Final = 66
_LARGEST_CODE: Final = np.iinfo(np.int8).max


def three_rows(input_ids: np.ndarray) -> np.ndarray:
    """At least three rows that differ: the prompt's own, then its rows back to front."""
    rows = list(input_ids[:3])
    rows += [rows[0][::-1], np.roll(rows[0], 1)]
    return np.stack(rows[:3])


def independent_rows(context: Context) -> Outcome:
    """Row i alone equals row i in a batch, in any order, beside rows whose state is huge."""
    model = context.model
    ids = three_rows(context.prompt.input_ids[:, :MOST_TOKENS])
    tokens, rows = ids.shape[1], ids.shape[0]
    gate = context.gates.continuation
    head, last = ids[:, :-1], ids[:, -1:]
    found: list[Measurement] = []
    for form, taken in (("prefill", head), ("step", last)):
        if not taken.shape[1]:
            continue
        past = model.initial_state(rows)
        if form == "step" and tokens > 1:
            _, past = feeding.prefill(model, head)
        run = feeding.prefill if form == "prefill" else type(model).step
        together = run(model, taken, past)
        order = np.roll(np.arange(rows), 1)
        logits, states = run(model, taken[order], rows_of(past, order))
        back = np.argsort(order)
        moved = logits[back], rows_of(states, back)
        found += context.same(f"{form}, rows in another order", moved, together, gate)
        loud = _loud_neighbours(context, past)
        beside = run(model, taken, loud)
        for row in range(rows):
            one = slice(row, row + 1)
            alone = run(model, taken[one], rows_of(past, one))
            name = f"{form}, row {row} of {rows} against the row alone"
            found += context.same(name, _row(together, one), alone, gate)
            if row == 0:
                name = f"{form}, row 0 beside rows whose states are huge"
                found += context.same(name, _row(beside, one), alone, gate)
    return Outcome(found, f"{rows} rows of {tokens} tokens")


def _row(result: tuple[np.ndarray, Arrays], rows: slice) -> tuple[np.ndarray, Arrays]:
    return result[0][rows], rows_of(result[1], rows)


def _loud_neighbours(context: Context, states: Mapping[str, np.ndarray]) -> Arrays:
    """``states`` with every row but the first replaced by huge values of both signs."""
    half = "fp16" in (context.manifest.precision, context.manifest.state_dtype)
    huge = HUGE_FP16 if half else HUGE
    rng = np.random.default_rng(0)
    loud: Arrays = {}
    for spec in context.manifest.states:
        value = states[spec.name_in]
        if spec.kind == SSM_SCALE:
            noise = np.full(value.shape, huge / _LARGEST_CODE)
        else:
            noise = rng.choice([-1.0, 1.0], value.shape)
            noise *= _LARGEST_CODE if value.dtype == np.int8 else huge
        noise[0] = value[0]
        loud[spec.name_in] = noise.astype(value.dtype)
    return loud


def ragged(context: Context) -> Outcome:
    """Each row of a right-padded batch has what it would have alone, whatever the padding is."""
    if not context.manifest.ragged:
        raise NotRun("the graphs take no sequence_lengths; export with --ragged")
    case = context.truth.case("ragged")
    if case.lengths is None or case.logits is None:
        raise NotRun(f"the case '{case.name}' has no lengths or no logits")
    lengths = case.lengths.astype(np.int64)
    rows, tokens = case.input_ids.shape
    padding = np.arange(tokens) >= lengths[:, None]
    garbage = np.random.default_rng(0).integers(0, vocabulary(context.manifest), (rows, tokens))
    ids = np.where(padding, garbage, case.input_ids)
    logits, states = feeding.prefill(context.model, ids, None, lengths)
    last = np.arange(rows), lengths - 1
    want = case.logits[last][:, None]
    got = logits[last][:, None] if context.all_positions else logits
    run = f"right-padded batch of lengths {', '.join(str(length) for length in lengths)}"
    found = context.states_agree(run, states, case.states)
    found += context.logits_agree(run, got, want)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = feeding.prefill(context.model, ids[one, :length])
        name = f"row {row} of the padded batch against the row alone"
        together = got[one], rows_of(states, one)
        found += context.same(name, together, alone, context.gates.continuation)
    found += _idle_rows(context, ids, states)
    return Outcome(found, f"{int(padding.sum())} garbage tokens in the padding")


def _idle_rows(
    context: Context, ids: np.ndarray, states: Mapping[str, np.ndarray]
) -> list[Measurement]:
    """A row of length 0 keeps its state to the bit, in both graphs."""
    rows = ids.shape[0]
    none = np.zeros(rows, np.int64)
    found: list[Measurement] = []
    for form, taken in (("prefill", ids), ("step", ids[:, :1])):
        if form == "prefill":
            _, after = feeding.prefill(context.model, taken, states, none)
        else:
            _, after = context.model.step(taken, states, none)
        found += context.unchanged(f"{form} of rows of length 0", after, states)
    return found
