"""A prompt is the same however it is cut: into steps, into pieces, at any length."""

from __future__ import annotations

from typing import Final

import numpy as np

from ssm_export.engines.runner import Arrays
from ssm_export.verification import feeding
from ssm_export.verification.context import Context, Outcome
from ssm_export.verification.gates import LENGTHS
from ssm_export.verification.truth import NotRun

MOST_STEPS: Final = 66
"""Steps that a prompt is repeated with: two past a chunk of 64."""
HEADS: Final = ((1,), (2,), (1, 1, 1, 1), (3, 7, 11), (63,), (64,), (65,), (63, 1), (1, 63, 1))
"""How a prompt begins when it is cut; the last piece is what remains."""


def prefill_equals_steps(context: Context) -> Outcome:
    """A prefill of L tokens equals L steps, and a prefill of L − 1 tokens with one step."""
    ids = context.prompt.input_ids[:, :MOST_STEPS]
    tokens = ids.shape[1]
    if tokens < 2:
        raise NotRun("the prompt has one token only")
    whole = feeding.prefill(context.model, ids)
    _, state = feeding.prefill(context.model, ids[:, :-1])
    after = context.model.step(ids[:, -1:], state)
    run = f"prefill of {tokens - 1} tokens, then a step"
    found = context.same(run, after, whole, context.gates.continuation)
    repeated = steps(context, ids)
    found += context.same(f"{tokens} steps", repeated, whole, context.gates.repetition)
    return Outcome(found)


def steps(context: Context, input_ids: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """Every token of ``input_ids`` (B,T) by the step graph: the last logits and the state."""
    state = context.model.initial_state(input_ids.shape[0])
    for position in range(input_ids.shape[1]):
        logits, state = context.model.step(input_ids[:, position : position + 1], state)
    return logits, state


def cuts(tokens: int) -> list[tuple[int, ...]]:
    """Pieces that a prompt of ``tokens`` is cut into, each a tuple that sums to it."""
    fitting = [(*head, tokens - sum(head)) for head in HEADS if sum(head) < tokens]
    fitting += [(tokens - 1, 1)] if tokens > 2 else []
    return list(dict.fromkeys(fitting))


def splits(context: Context) -> Outcome:
    """Any split of the prompt gives the true states and logits, and those of the whole prompt."""
    prompt = context.prompt
    ids = prompt.input_ids
    tokens = ids.shape[1]
    pieces = cuts(tokens)
    if not pieces:
        raise NotRun("the prompt has one token only")
    limit = feeding.longest_chunk(context.model) or tokens
    found = []
    for cut in pieces:
        run = "split " + " + ".join(str(piece) for piece in cut)
        fed = [min(limit, piece - at) for piece in cut for at in range(0, piece, limit)]
        logits, states = feeding.in_pieces(context.model, ids, fed)
        found += context.same(run, (logits, states), context.whole, context.gates.repetition)
        found += context.states_agree(run, states, prompt.states)
        found += context.logits_agree(run, logits[:, -1:], context.true_logits(tokens))
    return Outcome(found, f"{len(pieces)} splits of {tokens} tokens")


def lengths(context: Context) -> Outcome:
    """The prefill graph at several lengths: its dynamic axis is what it says.

    The logits of each length are held to the truth where it has them. Otherwise the rest of the
    prompt is run from the state that the length left, and its end is held to the truth.
    """
    prompt = context.prompt
    ids, tokens = prompt.input_ids, prompt.input_ids.shape[1]
    known = [length for length in LENGTHS if length <= tokens]
    if len(known) < 2:
        raise NotRun(f"the prompt has {tokens} tokens, so there is no second length")
    found = []
    for length in known:
        logits, state = feeding.prefill(context.model, ids[:, :length])
        run = f"prefill of {length} tokens"
        want = context.true_logits(length)
        if want is None:
            run = f"{run}, then of the other {tokens - length}"
            logits, state = feeding.prefill(context.model, ids[:, length:], state)
            want = context.true_logits(tokens)
            found += context.states_agree(run, state, prompt.states)
        found += context.logits_agree(run, logits[:, -1:], want)
    if not found:
        raise NotRun(f"the case '{prompt.name}' has neither logits nor states")
    longer = [str(length) for length in LENGTHS if length > tokens]
    detail = f"lengths {', '.join(str(length) for length in known)}"
    return Outcome(found, f"{detail}; not run: {', '.join(longer)}" if longer else detail)
