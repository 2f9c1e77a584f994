"""A quantized graph against a simulation of its codes: is it this model, and no other one?

Against the float model a quantized graph may be off by what its quantization costs, under which a
wrong scale can hide. Against the simulation it may be off by rounding alone.
"""

from __future__ import annotations

from ssm_export.verification import feeding
from ssm_export.verification.context import Context, Outcome
from ssm_export.verification.truth import SIMULATED, NotRun, Recorded


def codes(context: Context) -> Outcome:
    """Logits and states of both graphs against the recorded simulation."""
    if not context.manifest.quantization:
        raise NotRun("the weights are not quantized")
    case = Recorded(context.model.bundle).case(SIMULATED)
    ids = case.input_ids
    tokens = ids.shape[1]
    whole = feeding.prefill(context.model, ids)
    runs = [(f"prefill of {tokens} tokens", whole)]
    if tokens > 1:
        _, state = feeding.prefill(context.model, ids[:, :-1])
        after = context.model.step(ids[:, -1:], state)
        runs.append((f"prefill of {tokens - 1} tokens, then a step", after))
    found = []
    for run, (logits, states) in runs:
        if case.logits is not None:
            known = min(logits.shape[1], case.logits.shape[1])
            want = case.logits[:, -known:]
            found += context.logits_agree(run, logits[:, -known:], want, SIMULATED)
        found += context.states_agree(run, states, case.states, SIMULATED)
    return Outcome(found, "against a simulation of the codes")
