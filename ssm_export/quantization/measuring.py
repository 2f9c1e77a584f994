"""What a quantization gained and cost, measured for its report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ssm_export.bundle import Bundle
from ssm_export.engines import Recurrent, open_runner
from ssm_export.progress import Progress
from ssm_export.quantization.apply import simulated
from ssm_export.quantization.corpus import Corpus
from ssm_export.quantization.drift import STEPS, Drift, measure_drift
from ssm_export.quantization.evaluation import evaluate, evaluate_steps
from ssm_export.quantization.figures import ceiling_of, footprint
from ssm_export.quantization.job import Job
from ssm_export.quantization.mixed import MixedChoice
from ssm_export.quantization.plan import Plan
from ssm_export.quantization.report import AblationRow, NotRun, QuantizeReport
from ssm_export.quantization.sensitivity import sensitivities
from ssm_export.quantization.stream import LayerStream
from ssm_export.quantization.tensors import Tensors

_RECIPE: Final = "recipe"
_BYTES_PER_TOKEN: Final = 4
"""About what a token of a subword vocabulary stands for in English text and in source code."""
_BYTE_VOCABULARY: Final = 512
"""Up to this size tokens are bytes, and a few more."""
_DRIFT_SECONDS: Final = 60.0
"""Time that decoding for the drift may take unless it is asked for."""
_PROBED_PARAMETERS: Final = 200_000_000
"""Up to this size tensors are measured one by one unless told otherwise."""


@dataclass(frozen=True)
class Settled:
    """A quantization in which every tensor is decided.

    Attributes:
        job: what was asked for.
        corpus: the rows that it is calibrated and judged on.
        plan: what becomes of every tensor.
        tensors: the codes.
        variants: name to the plan of an ablation.
        mixed: the formats that were chosen by measuring; None where the recipe decides.
    """

    job: Job
    corpus: Corpus
    plan: Plan
    tensors: Tensors
    variants: Mapping[str, Plan] = field(default_factory=dict)
    mixed: MixedChoice | None = None


def measure(
    bundle: Bundle, settled: Settled, notes: tuple[str, ...], progress: Progress
) -> QuantizeReport:
    """Measure a quantized bundle: quality, sensitivity, drift, sizes.

    Args:
        bundle: the new bundle, complete but for its report.
        settled: what it was made from.
        notes: what there is to say about its graphs.
        progress: shows bars.
    """
    job, held_out = settled.job, settled.corpus.evaluation
    stream = LayerStream(job.source, held_out.ids, progress=progress)
    plans = {_RECIPE: settled.plan, **settled.variants}
    edits = {name: simulated(plan, settled.tensors) for name, plan in plans.items()}
    evaluation = evaluate(stream, edits, held_out.bytes_per_token)
    not_run: list[NotRun] = []
    if job.options.ablation and job.recipe.mixed is not None:
        not_run.append(NotRun("ablation", "the recipe chooses formats by measuring already"))
    probed = sensitivities(stream, settled.plan, settled.tensors) if _probes(job, not_run) else ()
    runner = open_runner(bundle, "onnxruntime")
    try:
        model = Recurrent(bundle, runner)
        few = settled.corpus.few_for_steps()
        steps = evaluate_steps(model, few, stream, held_out.bytes_per_token, progress=progress)
        drift = _drift(model, settled, progress)
    finally:
        runner.close()
    quality = evaluation.quality
    before, after = footprint(job.source), footprint(bundle)
    rows = [AblationRow(name, quality[name]) for name in plans if len(plans) > 1]
    return QuantizeReport(
        bundle=str(bundle.path),
        source=str(job.source.path),
        recipe=job.recipe.as_json(),
        before=before,
        after=after,
        evaluated_on=f"{held_out.source}: {held_out.ids.size} tokens",
        float_quality=quality["float"],
        quality=quality[_RECIPE],
        step_quality=steps,
        ceiling=ceiling_of(job.target, before, after),
        snr_db=evaluation.snr_db[_RECIPE],
        sensitivities=probed,
        ablation=tuple(rows),
        mixed=settled.mixed,
        limit_bits=_limit(settled),
        notes=(*settled.plan.notes, *settled.corpus.notes, *notes),
        drift={f"{job.state_dtype} state, against the float bundle": drift},
        not_run=tuple(not_run),
    )


def _limit(settled: Settled) -> float | None:
    """What the recipe may lose, in the unit that is measured: bits per byte of text, or bits
    per token where the rows are none."""
    limit, vocabulary = settled.job.recipe.limit_bits, settled.job.source.manifest.sizes["V"]
    if limit is None or settled.corpus.evaluation.bytes_per_token is not None:
        return limit
    return limit * (_BYTES_PER_TOKEN if vocabulary > _BYTE_VOCABULARY else 1)


def _drift(model: Recurrent, settled: Settled, progress: Progress) -> Drift:
    """The new bundle decoding token by token, against the float bundle."""
    job, options = settled.job, settled.job.options
    every = options.long_drift or job.state_dtype != "fp32"
    steps = STEPS if every else STEPS[:1]
    tokens = np.resize(settled.corpus.evaluation.ids, steps[-1])
    runner = open_runner(job.source, "onnxruntime")
    try:
        return measure_drift(
            model,
            Recurrent(job.source, runner),
            tokens,
            steps,
            limit_seconds=math.inf if options.long_drift else _DRIFT_SECONDS,
            progress=progress,
        )
    finally:
        runner.close()


def _probes(job: Job, not_run: list[NotRun]) -> bool:
    """Whether tensors are measured one by one; the reason is noted where not."""
    if job.options.sensitivity is not None:
        wanted = job.options.sensitivity
        why = "--no-sensitivity"
    else:
        size = job.source.manifest.sizes["parameters"]
        wanted = size <= _PROBED_PARAMETERS
        why = f"{size / 1e9:.1f} billion parameters take long; --sensitivity does it"
    if not wanted:
        not_run.append(NotRun("each tensor alone", why))
    return wanted
