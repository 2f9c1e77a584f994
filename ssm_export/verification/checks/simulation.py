"""A quantized graph against a simulation of its codes: is it this model, and no other one?

Against the float model a quantized graph may be off by what its quantization costs, under which a
wrong scale can hide; and a runtime that rounds inputs may be off from the simulation by nearly as
much. So the codes themselves are held to it too, by ONNX Runtime with all fusions of them off: then
only the rounding of the float model is left, and values at the border of two codes. What a lowering
has packed anew is held to the codes, to the bit.
"""

from __future__ import annotations

from ssm_export.engines.runner import Recurrent, Runner
from ssm_export.verification import feeding
from ssm_export.verification.context import Context, Outcome
from ssm_export.verification.measure import Measurement
from ssm_export.verification.opening import OneForm
from ssm_export.verification.packed import packed_differences
from ssm_export.verification.truth import EXACT, SIMULATED, Case, NotRun, Recorded

_CPU = "onnxruntime"
_CANONICAL = "canonical"


def codes(context: Context) -> Outcome:
    """Logits and states of both graphs against the recorded simulation."""
    if not context.manifest.quantization:
        raise NotRun("the weights are not quantized")
    case = Recorded(context.model.bundle).case(SIMULATED)
    found = _against(context, context.model, case, SIMULATED, "")
    runner = context.model.runner
    if runner.info.name != _CPU or EXACT not in context.rounding:
        return Outcome(found, "against a simulation of the codes")
    bundle = context.model.bundle
    if _runs_as_written(context):
        exact = _as_written(context, runner)
        try:
            model = Recurrent(bundle, exact)
            found += _against(context, model, case, EXACT, "codes as written, ")
        finally:
            exact.close()
    differing = packed_differences(bundle, runner.info.lowering)
    at = f"{differing[0]}, packed for '{runner.info.lowering}'" if differing else "packed weights"
    found.append(Measurement("packing", None, "tensors", float(len(differing)), 0.0, at))
    return Outcome(found, "against a simulation of the codes")


def _against(
    context: Context, model: Recurrent, case: Case, kind: str, how: str
) -> list[Measurement]:
    """A prefill, and a prefill with its last token as a step, against the simulation."""
    ids = case.input_ids
    tokens = ids.shape[1]
    runs = [(f"{how}prefill of {tokens} tokens", feeding.prefill(model, ids))]
    if tokens > 1:
        _, state = feeding.prefill(model, ids[:, :-1])
        after = model.step(ids[:, -1:], state)
        runs.append((f"{how}prefill of {tokens - 1} tokens, then a step", after))
    found: list[Measurement] = []
    for run, (logits, states) in runs:
        if case.logits is not None:
            known = min(logits.shape[1], case.logits.shape[1])
            want = case.logits[:, -known:]
            found += context.logits_agree(run, logits[:, -known:], want, kind)
        found += context.states_agree(run, states, case.states, kind)
    return found


def _runs_as_written(context: Context) -> bool:
    """ONNX Runtime's CPU has no kernel for FP4 codes."""
    weights = context.manifest.quantization.get("weights", {})
    return all(key["scheme"] != "nvfp4" for key in weights.values())


def _as_written(context: Context, runner: Runner) -> Runner:
    from ssm_export.engines.onnxruntime import OnnxRuntimeRunner

    bundle, large = context.model.bundle, isinstance(runner, OneForm)

    def load() -> Runner:
        return OnnxRuntimeRunner(bundle, lowering=_CANONICAL, low_memory=large, exact=True)

    return OneForm(load) if large else load()
