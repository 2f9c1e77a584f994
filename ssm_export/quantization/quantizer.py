"""The quantize stage: a float bundle → a quantized, verified bundle, and what that cost."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.bundle import Bundle, new_bundle, refuse_existing, write_atomically
from ssm_export.errors import SsmExportError
from ssm_export.graph_files import is_large
from ssm_export.progress import SILENT, Progress
from ssm_export.quantization.calibration import FILE, Statistics, Work, collect, every_value
from ssm_export.quantization.corpus import Corpus, open_corpus
from ssm_export.quantization.job import Job, QuantizeOptions, prepare
from ssm_export.quantization.measuring import Settled, measure
from ssm_export.quantization.mixed import candidate_keys, choose_formats
from ssm_export.quantization.plan import (
    STEPS,
    Plan,
    WeightKey,
    make_plan,
    values_needed,
    weight_keys,
    without_step,
)
from ssm_export.quantization.recipe import Rule
from ssm_export.quantization.report import QuantizeReport
from ssm_export.quantization.stream import LayerStream
from ssm_export.quantization.tensors import Tensors
from ssm_export.quantization.writer import write_bundle
from ssm_export.verification.release import verify_or_refuse

REPORT: Final = "reports/quantize.json"
_PLAIN: Final = "plain"


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
    deciding = Deciding(job, corpus, Path(output), progress)
    settled = deciding.settle()
    with new_bundle(output) as folder:
        report = _make(folder, settled, deciding.statistics, progress)
        report = dataclasses.replace(
            report, bundle=os.fspath(output), seconds=time.perf_counter() - began
        )
        if options.verify and not report.ok:
            raise _too_lossy(report, job)
        (folder / REPORT).parent.mkdir(exist_ok=True)
        write_atomically(folder / REPORT, json.dumps(report.as_json(), indent=2) + "\n")
    deciding.work.remove()
    return report


class Deciding:
    """From rules to a plan: collects what they need and settles every tensor.

    Args:
        job: what is quantized.
        corpus: its rows.
        output: the bundle that will be made; work is kept beside it.
        progress: shows bars.
    """

    def __init__(self, job: Job, corpus: Corpus, output: Path, progress: Progress) -> None:
        self.job = job
        self.corpus = corpus
        self.statistics = corpus.statistics
        self.tensors = Tensors(job.graphs["prefill"], job.sites, job.source.manifest.precision)
        identity = {
            "weights": job.source.manifest.weights.sha256,
            "rows": corpus.calibration.sha256,
            "recipe": job.recipe.as_json(),
            "blocks": job.blocks,
            "ablation": job.options.ablation,
        }
        self.work = Work(output.parent / f".{output.name}.quantize", identity)
        self._stream = LayerStream(job.source, corpus.calibration.ids, progress=progress)

    def settle(self) -> Settled:
        """Run the float model once where the recipe asks for it, and decide."""
        job, mixed = self.job, self.job.recipe.mixed
        variants = ablated(job.rules) if job.options.ablation and mixed is None else {}
        self._collect([job.rules, *variants.values()])
        chosen, rules = None, job.rules
        if mixed is not None:
            chosen = choose_formats(
                self._stream,
                mixed,
                rules,
                job.sites,
                self.tensors,
                blocks=job.blocks,
                statistics=self.statistics,
                precision=job.source.manifest.precision,
            )
            rules = chosen.rules
        plans = {name: self._planned(changed) for name, changed in variants.items()}
        return Settled(job, self.corpus, self._planned(rules), self.tensors, plans, chosen)

    def _planned(self, rules: Mapping[str, Rule]) -> Plan:
        keys, notes = weight_keys(rules, self.job.sites, self.job.blocks)
        precision = self.job.source.manifest.precision
        return make_plan(rules, self.job.sites, keys, self.statistics, precision, notes)

    def _collect(self, every: list[Mapping[str, Rule]]) -> None:
        """Statistics of activations and codes of compensated rounding, in one run of the model."""
        job, rows = self.job, self.corpus.calibration
        rounded: dict[WeightKey, None] = {}
        needed: set[tuple[str, int]] = set()
        for rules in every:
            needed |= values_needed(rules, job.sites)
            keys, _ = weight_keys(rules, job.sites, job.blocks)
            rounded |= {key: None for key in keys.values() if key.rounding == "gptq"}
        if job.recipe.mixed is not None:
            options = candidate_keys(job.rules, job.sites, job.recipe.mixed, job.blocks)
            for schemes in options.values():
                rounded |= {k: None for k in schemes.values() if k and k.rounding == "gptq"}
        missing = self.statistics is None or not self.statistics.has(needed)
        if not (needed and missing) and not rounded:
            return
        statistics = Statistics(
            rows.source, rows.sha256, job.source.manifest.weights.sha256, int(rows.ids.size)
        )
        # Whatever another recipe may need is taken too: it costs little beside the run itself.
        wanted = every_value(job.sites, needed) if needed and missing else []
        collect(self._stream, statistics, wanted, rounded, self.tensors, self.work)
        if wanted:
            self.statistics = statistics


def ablated(rules: Mapping[str, Rule]) -> dict[str, dict[str, Rule]]:
    """What an ablation compares: the rules with each step left out, and without any of them."""
    variants = {f"without {step}": without_step(rules, step) for step in STEPS}
    plain = dict(rules)
    for step in STEPS:
        plain = without_step(plain, step)
    variants[_PLAIN] = plain
    return {name: changed for name, changed in variants.items() if changed != dict(rules)}


def _make(
    folder: Path, settled: Settled, statistics: Statistics | None, progress: Progress
) -> QuantizeReport:
    """Make the bundle in a folder, hold it against the truth and measure it."""
    job = settled.job
    bundle = write_bundle(folder, job, settled.plan, settled.tensors, progress)
    manifest = bundle.manifest
    manifest.quantization = _decided(settled)
    settled.corpus.save(folder)  # for other recipes
    if statistics is not None:
        statistics.save(folder / FILE)
    notes: tuple[str, ...] = ()
    if job.options.verify:
        _, notes = verify_or_refuse(bundle, large=is_large(manifest), progress=progress)
    report = measure(bundle, settled, notes, progress)
    manifest.verified = job.options.verify
    manifest.quantization |= {
        "evaluated_on": report.evaluated_on,
        "lost_bits": report.lost_bits,
        "kl_bits": report.quality.kl_bits,
        "top1": report.quality.top1,
    }
    bundle.save()
    return report


def _decided(settled: Settled) -> dict[str, Any]:
    """What the manifest says of a plan."""
    job, plan = settled.job, settled.plan
    return {
        "recipe": job.recipe.name,
        "target": job.target.name if job.target else "",
        "source_weights_sha256": job.source.manifest.weights.sha256,
        "weights": {name: asdict(key) for name, key in plan.weights.items()},
        "activations": {
            one.name: {
                "scheme": one.scheme,
                "rotate": one.rotate,
                "scale": one.scale,
                "scales": 1 if one.factors is None else len(set(one.factors.ravel().tolist())),
            }
            for one in plan.activations
        },
        "calibrated_on": settled.corpus.calibration.source,
    }


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
