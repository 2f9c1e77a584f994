"""Logits and every state against the truth, for both graphs."""

from __future__ import annotations

from ssm_export.verification.context import Context, Outcome
from ssm_export.verification.truth import NotRun


def logits(context: Context) -> Outcome:
    """Logits of the prefill graph, and of the step graph for the last token."""
    prompt = context.prompt
    if prompt.logits is None:
        raise NotRun(f"the case '{prompt.name}' has no logits")
    tokens = prompt.input_ids.shape[1]
    got, want = context.whole[0], prompt.logits
    positions = min(got.shape[1], want.shape[1])
    run = f"prefill of {tokens} tokens"
    found = context.logits_agree(run, got[:, -positions:], want[:, -positions:])
    if tokens > 1:
        run = f"prefill of {tokens - 1} tokens, then a step"
        found += context.logits_agree(run, context.stepped[0], context.true_logits(tokens))
    return Outcome(found)


def states(context: Context) -> Outcome:
    """Every state after the prompt, by the prefill graph and with its last token by a step."""
    prompt = context.prompt
    tokens = prompt.input_ids.shape[1]
    found = context.states_agree(f"prefill of {tokens} tokens", context.whole[1], prompt.states)
    if not found:
        raise NotRun(f"'{context.truth.name}' gives no states")
    if tokens > 1:
        run = f"prefill of {tokens - 1} tokens, then a step"
        found += context.states_agree(run, context.stepped[1], prompt.states)
    left_out = [name for name in context.places if name not in prompt.states]
    detail = f"not compared, '{context.truth.name}' lacks them: {', '.join(left_out)}"
    return Outcome(found, detail if left_out else "")
