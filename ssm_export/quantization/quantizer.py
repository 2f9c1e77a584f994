"""The quantize stage: a float bundle → a quantized, verified bundle, and what that cost."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from ssm_export import errors
from ssm_export.bundle import FORMS, Bundle, new_bundle, refuse_existing, write_atomically
from ssm_export.errors import SsmExportError
from ssm_export.graph_files import CANONICAL, LARGE_WEIGHTS_BYTES
from ssm_export.progress import SILENT, Progress
from ssm_export.quantization.apply import Simulated, write_plan
from ssm_export.quantization.calibration import FILE, Statistics, Work, collect
from ssm_export.quantization.corpus import Corpus, open_corpus
from ssm_export.quantization.evaluation import evaluate, evaluate_steps
from ssm_export.quantization.mixed import MixedChoice, candidate_keys, choose_formats
from ssm_export.quantization.plan import (
    STEPS,
    Plan,
    WeightKey,
    make_plan,
    rotations,
    weight_keys,
    without_step,
)
from ssm_export.quantization.recipe import FLOAT, Recipe, Rule, match, read_recipe
from ssm_export.quantization.report import AblationRow, NotRun, QuantizeReport
from ssm_export.quantization.sensitivity import sensitivities
from ssm_export.quantization.sites import Sites, already_quantized, find_sites
from ssm_export.quantization.state import check_state_type
from ssm_export.quantization.stream import Edit, LayerStream
from ssm_export.quantization.support import allowed_blocks, check_target
from ssm_export.quantization.tensors import Tensors
from ssm_export.targets import get_target

if TYPE_CHECKING:
    from ssm_export.engines import Recurrent
    from ssm_export.quantization.drift import Drift
    from ssm_export.targets import Target

REPORT: Final = "reports/quantize.json"
_PLAIN: Final = "plain"
_RECIPE: Final = "recipe"


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Args:
        recipe: a name of ``list recipes``, or a YAML file.
        calibration: text, token ids, recorded inputs, or a quantized bundle whose data and
            statistics are taken again; the model writes its own text when None.
        evaluation: held-out data; the end of the calibration data when None.
        target: the device that it is for: what it cannot compute with is refused.
        state_dtype: ``fp32``, ``fp16`` or ``int8``; the recipe's choice when None.
        sequences: rows of calibration; the recipe's when None.
        tokens: of a row; the recipe's when None.
        ablation: also measure the recipe with each of its steps left out.
        sensitivity: measure every tensor alone; done where it takes minutes at most when None.
        long_drift: also decode 65 536 tokens, whatever it takes.
        verify: whether the graphs must pass, and the loss be within the recipe's limit.
    """

    recipe: str = "w8a16"
    calibration: str | None = None
    evaluation: str | None = None
    target: str | None = None
    state_dtype: str | None = None
    sequences: int | None = None
    tokens: int | None = None
    ablation: bool = False
    sensitivity: bool | None = None
    long_drift: bool = False
    verify: bool = True


@dataclass(frozen=True)
class Job:
    """A quantization that was checked and not begun.

    Attributes:
        source: the float bundle.
        options: as given.
        recipe: what they name.
        target: likewise; None for any.
        state_dtype: of the new bundle.
        blocks: of int4 that the target takes.
        graphs: form to canonical float graph.
        sites: of the model.
        rules: site to its rule.
    """

    source: Bundle
    options: QuantizeOptions
    recipe: Recipe
    target: Target | None
    state_dtype: str
    blocks: tuple[int, ...]
    graphs: Mapping[str, ir.Model]
    sites: Sites
    rules: Mapping[str, Rule]


def quantize(
    bundle: Bundle,
    output: str | os.PathLike[str],
    options: QuantizeOptions | None = None,
    *,
    progress: Progress = SILENT,
) -> QuantizeReport:
    """Quantize a float bundle into a new bundle; the float bundle is only read.

    Args:
        bundle: the float bundle.
        output: the bundle to make; must not exist. Work that took long is kept in a hidden folder
            beside it until it is done, so that the same command goes on after an interruption.
        options: how; defaults when None.
        progress: shows bars.

    Raises:
        SsmExportError: 1xx and 8xx for options, recipe and data, ``PARITY_FAILED`` where a graph
            does not compute what the simulation computes, ``QUALITY_LOST`` where more was lost than
            the recipe allows.
    """
    began = time.perf_counter()
    options = options or QuantizeOptions()
    refuse_existing(output)
    job = prepare(bundle, options)
    corpus = open_corpus(job, progress)
    found = _Quantization(job, corpus, Path(output), progress)
    found.decide()
    with new_bundle(output) as folder:
        report = found.write(folder)
        report = dataclasses.replace(
            report, bundle=os.fspath(output), seconds=time.perf_counter() - began
        )
        if options.verify and not report.ok:
            raise _too_lossy(report, job)
        (folder / REPORT).parent.mkdir(exist_ok=True)
        write_atomically(folder / REPORT, json.dumps(report.as_json(), indent=2) + "\n")
    found.work.remove()
    return report


def prepare(bundle: Bundle, options: QuantizeOptions) -> Job:
    """Check everything that can be checked before any work.

    Raises:
        SsmExportError: ``ALREADY_QUANTIZED``, ``BAD_CONFIG_FILE`` for a recipe that cannot be used
            or names tensors that do not exist, ``UNSUPPORTED_SCHEME`` for one that the target
            cannot run, ``BAD_OPTION`` for a state type.
    """
    manifest = bundle.manifest
    if manifest.quantization:
        raise already_quantized(str(bundle.path))
    recipe = read_recipe(options.recipe)
    target = get_target(options.target) if options.target else None
    if target is not None:
        check_target(recipe, target)
    graphs = {form: ir.load(bundle.graph_path(form, CANONICAL)) for form in FORMS}
    sites = find_sites(graphs["prefill"])
    rules = match(recipe, sites.names(), manifest.family)
    asked = options.state_dtype or (recipe.state if recipe.state != "keep" else None)
    state_dtype = asked or manifest.state_dtype
    check_state_type(state_dtype)
    if manifest.state_dtype != "fp32" and state_dtype not in ("fp32", manifest.state_dtype):
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the states of the bundle are {manifest.state_dtype} already",
            where=f"--state-dtype {state_dtype}",
            fix="export with --state-dtype fp32, then quantize",
        )
    return Job(
        bundle, options, recipe, target, state_dtype, allowed_blocks(target), graphs, sites, rules
    )


class _Quantization:
    """One run: decides, writes, measures."""

    def __init__(self, job: Job, corpus: Corpus, output: Path, progress: Progress) -> None:
        self.job = job
        self.corpus = corpus
        self.progress = progress
        self.precision = job.source.manifest.precision
        self.tensors = Tensors(job.graphs["prefill"], job.sites, self.precision)
        self.statistics = corpus.statistics
        self.rules: Mapping[str, Rule] = job.rules
        self.plan = Plan()
        self.mixed: MixedChoice | None = None
        self.work = Work(output.parent / f".{output.name}.quantize", self._identity())

    def decide(self) -> None:
        """Collect what the recipe needs and settle every tensor."""
        self._collect()
        mixed = self.job.recipe.mixed
        if mixed is not None:
            self.mixed = choose_formats(
                self._held_in(),
                mixed,
                self.rules,
                self.job.sites,
                self.tensors,
                blocks=self.job.blocks,
                statistics=self.statistics,
                precision=self.precision,
            )
            self.rules = self.mixed.rules
        self.plan = self._planned(self.rules)

    def write(self, folder: Path) -> QuantizeReport:
        """Make the bundle in a folder, hold it against the truth and measure it."""
        from ssm_export.quantization.writer import write_bundle

        made = write_bundle(folder, self.job, self.plan, self.tensors, self.progress)
        bundle = made.bundle
        self._keep_calibration(bundle)
        if self.job.options.verify:
            from ssm_export.verification.release import verify_or_refuse

            large = bundle.manifest.weights.bytes > LARGE_WEIGHTS_BYTES
            _, notes = verify_or_refuse(bundle, large=large, progress=self.progress)
            made = dataclasses.replace(made, notes=(*made.notes, *notes))
        report = self._measured(bundle, made.notes)
        bundle.manifest.verified = self.job.options.verify
        bundle.manifest.quantization = self._facts(report)
        bundle.save()
        return report

    def simulated(self, plan: Plan) -> Edit:
        """The edit that puts a plan's simulation into a piece."""
        return lambda model: write_plan(model, plan, self.tensors, Simulated())

    def _planned(self, rules: Mapping[str, Rule]) -> Plan:
        keys, notes = weight_keys(rules, self.job.sites, self.job.blocks)
        return make_plan(rules, self.job.sites, keys, self.statistics, self.precision, notes)

    def _variants(self) -> dict[str, dict[str, Rule]]:
        """What the ablation compares: each step left out, and all of them."""
        if not self.job.options.ablation or self.job.recipe.mixed is not None:
            return {}
        variants = {f"without {step}": without_step(self.rules, step) for step in STEPS}
        plain = dict(self.rules)
        for step in STEPS:
            plain = without_step(plain, step)
        return {
            name: rules
            for name, rules in {**variants, _PLAIN: plain}.items()
            if rules != dict(self.rules)
        }

    def _collect(self) -> None:
        """Statistics of activations and codes of compensated rounding, in one run of the model."""
        job, sites = self.job, self.job.sites
        every = [dict(self.rules), *self._variants().values()]
        values = {site.name: site for site in sites.weights}
        wanted: dict[tuple[str, int], int] = {}
        rounded: dict[WeightKey, None] = {}
        for rules in every:
            turned = rotations(rules, sites)
            for scan in sites.scans:
                if rules.get(scan.name, Rule(())).activations in ("int8", "fp8"):
                    wanted[scan.value, 0] = scan.layer
            for name, rule in rules.items():
                site = values.get(name)
                if site is None or site.product is None or rule.activations == FLOAT:
                    continue
                wanted[site.product.activation, turned.get(name, 0)] = site.layer
            keys, _ = weight_keys(rules, sites, job.blocks)
            rounded |= {key: None for key in keys.values() if key.rounding == "gptq"}
        if job.recipe.mixed is not None:
            options = candidate_keys(self.rules, sites, job.recipe.mixed, job.blocks)
            for schemes in options.values():
                rounded |= {k: None for k in schemes.values() if k and k.rounding == "gptq"}
        missing = self.statistics is None or not self.statistics.has(wanted)
        if not (wanted and missing) and not rounded:
            return
        statistics = Statistics(
            self.corpus.calibration.source,
            self.corpus.calibration.sha256,
            job.source.manifest.weights.sha256,
            int(self.corpus.calibration.ids.size),
        )
        needed = [(value, turned, layer) for (value, turned), layer in wanted.items()]
        collect(self._held_in(), statistics, needed, rounded, self.tensors, self.work)
        if wanted and missing:
            self.statistics = statistics

    def _held_in(self) -> LayerStream:
        return LayerStream(self.job.source, self.corpus.calibration.ids, progress=self.progress)

    def _measured(self, bundle: Bundle, notes: tuple[str, ...]) -> QuantizeReport:
        from ssm_export.engines import Recurrent, open_runner
        from ssm_export.quantization.figures import ceiling_of, footprint

        job, held_out = self.job, self.corpus.evaluation
        stream = LayerStream(job.source, held_out.ids, progress=self.progress)
        plans = {_RECIPE: self.plan}
        plans |= {name: self._planned(rules) for name, rules in self._variants().items()}
        edits = {name: self.simulated(plan) for name, plan in plans.items()}
        evaluation = evaluate(stream, edits, held_out.bytes_per_token)
        not_run: list[NotRun] = []
        if job.options.ablation and job.recipe.mixed is not None:
            not_run.append(NotRun("ablation", "the recipe chooses formats by measuring already"))
        probed = (
            sensitivities(stream, self.plan, self.tensors) if self._probes_tensors(not_run) else ()
        )
        runner = open_runner(bundle, "onnxruntime")
        try:
            model = Recurrent(bundle, runner)
            few = self.corpus.few_for_steps()
            steps = evaluate_steps(
                model, few, stream, held_out.bytes_per_token, progress=self.progress
            )
            drift = self._drift(model)
        finally:
            runner.close()
        quality = evaluation.quality
        before, after = footprint(job.source), footprint(bundle)
        rows = [AblationRow(name, quality[name]) for name in plans if len(plans) > 1]
        report = QuantizeReport(
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
            mixed=self.mixed,
            limit_bits=self._limit(),
            notes=(*self.plan.notes, *self.corpus.notes, *notes),
            drift={f"{job.state_dtype} state, against the float bundle": drift},
            not_run=tuple(not_run),
        )
        return report

    def _limit(self) -> float | None:
        """What the recipe may lose, in the unit that is measured: bits per byte of text, or bits
        per token where the rows are none."""
        limit, vocabulary = self.job.recipe.limit_bits, self.job.source.manifest.sizes["V"]
        if limit is None or self.corpus.evaluation.bytes_per_token is not None:
            return limit
        return limit * (_BYTES_PER_TOKEN if vocabulary > _BYTE_VOCABULARY else 1)

    def _drift(self, model: Recurrent) -> Drift:
        """The new bundle decoding token by token, against the float bundle."""
        from ssm_export.engines import Recurrent, open_runner
        from ssm_export.quantization.drift import STEPS, measure_drift

        options = self.job.options
        every = options.long_drift or self.job.state_dtype != "fp32"
        steps = STEPS if every else STEPS[:1]
        tokens = np.resize(self.corpus.evaluation.ids, steps[-1])
        runner = open_runner(self.job.source, "onnxruntime")
        try:
            return measure_drift(
                model,
                Recurrent(self.job.source, runner),
                tokens,
                steps,
                limit_seconds=math.inf if options.long_drift else _DRIFT_SECONDS,
                progress=self.progress,
            )
        finally:
            runner.close()

    def _probes_tensors(self, not_run: list[NotRun]) -> bool:
        """Whether tensors are measured one by one; the reason is noted where not."""
        if self.job.options.sensitivity is not None:
            wanted = self.job.options.sensitivity
            why = "--no-sensitivity"
        else:
            size = self.job.source.manifest.sizes["parameters"]
            wanted = size <= _PROBED_PARAMETERS
            why = f"{size / 1e9:.1f} billion parameters take long; --sensitivity does it"
        if not wanted:
            not_run.append(NotRun("each tensor alone", why))
        return wanted

    def _keep_calibration(self, bundle: Bundle) -> None:
        """Store data and statistics for other recipes."""
        self.corpus.save(bundle.path)
        if self.statistics is not None:
            self.statistics.save(bundle.path / FILE)

    def _identity(self) -> dict[str, Any]:
        return {
            "weights": self.job.source.manifest.weights.sha256,
            "rows": self.corpus.calibration.sha256,
            "recipe": self.job.recipe.as_json(),
            "blocks": self.job.blocks,
            "ablation": self.job.options.ablation,
        }

    def _facts(self, report: QuantizeReport) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "recipe": self.job.recipe.name,
            "target": self.job.target.name if self.job.target else "",
            "source_weights_sha256": self.job.source.manifest.weights.sha256,
            "weights": {name: asdict(key) for name, key in self.plan.weights.items()},
            "activations": {
                f"{plan.name}": {
                    "scheme": plan.scheme,
                    "rotate": plan.rotate,
                    "scale": plan.scale,
                    "scales": 1 if plan.factors is None else len(set(plan.factors.ravel())),
                }
                for plan in self.plan.activations
            },
            "calibrated_on": self.corpus.calibration.source,
            "evaluated_on": report.evaluated_on,
            "lost_bits": report.lost_bits,
            "kl_bits": report.quality.kl_bits,
            "top1": report.quality.top1,
        }


_BYTES_PER_TOKEN: Final = 4
"""About what a token of a subword vocabulary stands for in English text and in source code."""
_BYTE_VOCABULARY: Final = 512
"""Up to this size tokens are bytes, and a few more."""
_DRIFT_SECONDS: Final = 60.0
"""Time that decoding for the drift may take unless it is asked for."""
_PROBED_PARAMETERS: Final = 200_000_000
"""Up to this size tensors are measured one by one unless told otherwise."""


def _too_lossy(report: QuantizeReport, job: Job) -> SsmExportError:
    worst = ", ".join(one.site for one in report.sensitivities[:3])
    unit = "token" if report.quality.bits_per_byte is None else "byte"
    return SsmExportError(
        errors.QUALITY_LOST,
        f"{report.lost_bits:.4f} bits per {unit} are lost, '{job.recipe.name}' allows "
        f"{report.limit_bits}",
        where=str(job.source.path),
        why=f"the most sensitive tensors are {worst}" if worst else "",
        fix="leave them float with a rule of their own (configs/quantize/README.md), take w8a16, "
        "or --no-verify to keep it anyway",
    )
