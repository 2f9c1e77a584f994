"""The export stage: checkpoint → verified bundle."""

from __future__ import annotations

import datetime
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx
import onnx_ir as ir
import torch
import yaml

from ssm_export import errors
from ssm_export.bundle import (
    FORMS,
    MANIFEST,
    WEIGHTS,
    Bundle,
    FileEntry,
    Manifest,
    new_bundle,
    refuse_existing,
)
from ssm_export.checkpoints import Checkpoint, open_checkpoint
from ssm_export.engines._plugins import PLUGIN, plugin_graph, plugin_lowering
from ssm_export.errors import SsmExportError
from ssm_export.lowering import LOWERINGS, attach_bodies, lower
from ssm_export.models import family
from ssm_export.models.base import DTYPES, RecurrentLM
from ssm_export.progress import SILENT, Progress
from ssm_export.recording import record_parity
from ssm_export.references.torch_model import TorchReference
from ssm_export.targets import get_target
from ssm_export.trace import build_fake, trace
from ssm_export.weights import Weights, write_weights

if TYPE_CHECKING:
    from ssm_export.engines import Runner
    from ssm_export.verification import VerifyReport

CANONICAL: Final = "canonical"
AUTO: Final = "auto"
STATE_DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16}
LARGE_WEIGHTS_BYTES: Final = 1 << 30
"""Above this the lowering is not chosen by measuring, and checks run with little memory."""
LARGE_CHECKS: Final = ("logits", "states")
"""What is checked before a large bundle appears; the rest is for ``ssm-export verify``."""
_GRAPH_BYTES: Final = 5_000_000
"""A graph without its weights stays below this; more means that something was unrolled."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export. ``None`` and ``auto`` mean: choose well.

    Args:
        precision: ``fp32``, ``fp16`` or ``bf16``: weights and activations. Scan arithmetic is fp32.
        state_dtype: ``fp32`` or ``fp16``: the SSM states. bf16 drifts and is refused.
        lowering: ``auto`` (the fastest for ONNX Runtime here), ``canonical``, ``native``, ``ort``,
            or ``plugin``: ``native`` graphs for the runtimes here, and beside them the graph that
            TensorRT runs with our plugin library.
        target: the device whose kernels ``plugin`` compiles.
        ragged: graphs take ``sequence_lengths (B,)`` for right-padded batches.
        logits: ``last`` or ``all`` positions.
        parity: ``quick`` records prompts only, ``full`` also 4096-token drift and 256 greedy
            tokens, ``auto`` takes ``full`` where the model is small.
        verify: whether the graphs must pass before the bundle appears.
    """

    precision: str = "fp32"
    state_dtype: str = "fp32"
    lowering: str = AUTO
    target: str | None = None
    ragged: bool = False
    logits: str = "last"
    parity: str = "auto"
    verify: bool = True

    def check(self) -> None:
        """``BAD_OPTION`` names the first value that cannot be used."""
        if self.state_dtype == "bf16":
            raise SsmExportError(
                errors.BAD_OPTION,
                "a bf16 state drifts by 4e-2 within 4096 steps",
                where="--state-dtype bf16",
                why="each step adds to the state, and bf16 keeps 8 bits of it",
                fix="--state-dtype fp32 (or fp16 where memory is short)",
            )
        choices: dict[str, tuple[str, ...]] = {
            "precision": tuple(DTYPES),
            "state_dtype": tuple(STATE_DTYPES),
            "lowering": (AUTO, CANONICAL, *LOWERINGS, PLUGIN),
            "logits": ("last", "all"),
            "parity": ("auto", "quick", "full"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise SsmExportError(
                    errors.BAD_OPTION,
                    f"'{value}' is not one of {', '.join(allowed)}",
                    where=f"--{name.replace('_', '-')}",
                    fix=f"--{name.replace('_', '-')} {allowed[0]}",
                )
        if (self.lowering == PLUGIN) != (self.target is not None):
            raise SsmExportError(
                errors.BAD_OPTION,
                "--lowering plugin and --target belong together",
                where="--target",
                why="kernels are compiled for one chip, and the other lowerings have none",
                fix="--lowering plugin --target jetson-agx-orin; ssm-export list targets has all",
            )
        if self.target is not None:
            plugin_lowering(get_target(self.target))


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        bundle: the bundle's folder; None after a dry run.
        plan: family, sizes, states and files that were (or would be) made.
        verification: the checks that ran before the bundle appeared; None when skipped.
    """

    bundle: Path | None
    plan: dict[str, Any]
    verification: VerifyReport | None = None
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The members of the ``--json`` document."""
        checks = self.verification.as_json()["checks"] if self.verification else []
        return {
            "bundle": str(self.bundle) if self.bundle else None,
            "plan": self.plan,
            "checks": checks,
            "notes": list(self.notes),
        }


def export(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ExportReport:
    """Export a checkpoint into a new bundle.

    Args:
        checkpoint: a folder (transformers or mamba_ssm layout) or a hub id.
        output: the bundle to make; must not exist.
        options: how; defaults when left out.
        dry_run: check everything that can be checked without tracing, and write nothing.
        progress: shows bars.

    Raises:
        SsmExportError: 1xx for options, 2xx for the checkpoint, 3xx for tracing,
            ``PARITY_FAILED`` when the graphs do not compute what the reference computes.
    """
    options = options or ExportOptions()
    options.check()
    refuse_existing(output)  # before the work, and again where the folder is made
    with open_checkpoint(os.fspath(checkpoint)) as opened:
        model_class = family(opened.model_type)
        config = model_class.config_class.from_dict(opened.config)
        model, mode = build_fake(
            lambda: model_class(
                config,
                dtype=DTYPES[options.precision],
                state_dtype=STATE_DTYPES[options.state_dtype],
            )
        )
        weights = Weights(model, opened)
        plan = _plan(model, opened, options)
        if dry_run:
            return ExportReport(None, plan)
        with new_bundle(output) as folder:
            graphs = {}
            task = progress.task("tracing", len(FORMS))
            for form in FORMS:
                graphs[form] = attach_bodies(
                    trace(
                        model,
                        mode,
                        form,
                        ragged=options.ragged,
                        all_logits=options.logits == "all",
                    ),
                    form,
                )
                task.advance()
            report = _fill(folder, graphs, weights, opened, model, options, plan, progress)
        return ExportReport(Path(output), plan, report[0], report[1])


def _verify(bundle: Bundle, *, large: bool, progress: Progress) -> VerifyReport:
    """The graphs against the vectors just recorded; ``PARITY_FAILED`` names what departs.

    A large bundle is run one graph at a time with little memory, which takes seconds a call, so
    only logits and states are checked: prefill, and prefill with the last token as a step.
    """
    from ssm_export.engines import open_runner
    from ssm_export.verification import verify
    from ssm_export.verification.opening import OneForm

    def load() -> Runner:
        return open_runner(bundle, "onnxruntime", low_memory=large)

    runner = OneForm(load) if large else load()
    try:
        checks = LARGE_CHECKS if large else None
        report = verify(bundle, runner=runner, checks=checks, progress=progress)
    finally:
        runner.close()
    if not report.ok:
        worst = "; ".join(
            f"{check.name}: {check.worst:.1e}, allowed {check.tolerance:.1e} ({check.where})"
            for check in report.failures
        )
        raise SsmExportError(
            errors.PARITY_FAILED,
            worst,
            where=f"{bundle.manifest.family}, lowering {bundle.manifest.lowering['chosen']}",
            fix="export with --no-verify, look closer with "
            "'ssm-export verify BUNDLE --bisect', and please report it",
        )
    return report


def _plan(model: RecurrentLM, checkpoint: Checkpoint, options: ExportOptions) -> dict[str, Any]:
    """What will be made, for people and for ``--dry-run``."""
    itemsize = DTYPES[options.precision].itemsize
    parameters = sum(parameter.numel() for parameter in model.parameters())
    state_bytes = sum(
        math.prod(size for size in state.shape if isinstance(size, int))
        * getattr(torch, state.dtype).itemsize
        for state in model.states()
    )
    return {
        "source": str(checkpoint.path),
        "layout": checkpoint.layout,
        "family": model.model_type,
        "parameters": parameters,
        "sizes": model.sizes(),
        "weights_bytes": parameters * itemsize,
        "state_bytes_per_row": state_bytes,
        "options": asdict(options),
    }


def _fill(
    folder: Path,
    graphs: Mapping[str, ir.Model],
    weights: Weights,
    checkpoint: Checkpoint,
    model: RecurrentLM,
    options: ExportOptions,
    plan: dict[str, Any],
    progress: Progress,
) -> tuple[VerifyReport | None, tuple[str, ...]]:
    """Write every file of the bundle into ``folder``."""
    from ssm_export.machine import tool_versions

    (folder / "onnx").mkdir()
    write_weights(weights, graphs.values(), folder / WEIGHTS, progress)
    bundle = Bundle(folder, _manifest(model, checkpoint, options, plan, progress))
    manifest = bundle.manifest
    manifest.weights = bundle.entry(WEIGHTS)
    manifest.versions = tool_versions()
    notes = _write_graphs(bundle, graphs, options, progress)
    if options.target is not None:
        made = plugin_graph(bundle, get_target(options.target), progress)
        what = f"onnx/{made.name}, {made.stat().st_size / 1e3:.0f} kB, has the kernels of "
        what += f"{options.target} compiled and not run; on the device, after build: "
        notes += (what + "ssm-export verify BUNDLE --runner tensorrt",)
    manifest.files = tuple(_copy_side_files(bundle, checkpoint))
    exact = TorchReference(model, weights)
    rounded = TorchReference(model, weights, exact=False)
    record_parity(bundle, exact, rounded, options.parity, progress)
    large = manifest.weights.bytes > LARGE_WEIGHTS_BYTES
    _choose_lowering(bundle, options, large=large, progress=progress)
    (folder / "effective_config.yaml").write_text(
        yaml.safe_dump({"export": plan["options"]}, sort_keys=False), encoding="utf-8"
    )
    bundle.save()
    report = None
    if options.verify:
        report = _verify(bundle, large=large, progress=progress)
        manifest.verified = True
        bundle.save()
        if large:
            checked = ", ".join(LARGE_CHECKS)
            notes += (f"checked {checked}; the other checks: ssm-export verify BUNDLE",)
    assert (folder / MANIFEST).is_file()
    return report, notes


def _manifest(
    model: RecurrentLM,
    checkpoint: Checkpoint,
    options: ExportOptions,
    plan: dict[str, Any],
    progress: Progress,
) -> Manifest:
    return Manifest(
        source={
            "path": str(checkpoint.path),
            "layout": checkpoint.layout,
            "weights_sha256": checkpoint.weights_sha256(progress),
        },
        family=model.model_type,
        sizes={**plan["sizes"], "parameters": plan["parameters"]},
        precision=options.precision,
        state_dtype=options.state_dtype,
        logits=options.logits,
        ragged=options.ragged,
        states=model.states(),
        graphs={},
        lowering={},
        weights=FileEntry(WEIGHTS, 0, ""),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _write_graphs(
    bundle: Bundle, graphs: Mapping[str, ir.Model], options: ExportOptions, progress: Progress
) -> tuple[str, ...]:
    """Save the canonical graphs and their lowerings; each passes ONNX's checker."""
    wanted = LOWERINGS if options.lowering == AUTO else tuple({_runs_here(options)} - {CANONICAL})
    task = progress.task("lowering", len(graphs) * (1 + len(wanted)))
    notes: list[str] = []
    for form, graph in graphs.items():
        bundle.manifest.graphs[form] = {CANONICAL: _save(bundle, graph, f"onnx/{form}.onnx")}
        task.advance()
        for lowering in wanted:
            lowered = lower(graph, lowering)
            path = f"onnx/{form}.{lowering}.onnx"
            bundle.manifest.graphs[form][lowering] = _save(bundle, lowered.model, path)
            notes += [f"{form} {lowering}: {note}" for note in lowered.notes]
            task.advance()
    return tuple(dict.fromkeys(notes))


def _runs_here(options: ExportOptions) -> str:
    """The lowering for ONNX Runtime: plugin graphs run in TensorRT only."""
    return "native" if options.lowering == PLUGIN else options.lowering


def _save(bundle: Bundle, graph: ir.Model, relative: str) -> FileEntry:
    path = bundle.path / relative
    ir.save(graph, path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise SsmExportError(
            errors.GRAPH_INVALID, f"onnx.checker refuses {relative}: {error}"
        ) from error
    entry = bundle.entry(relative)
    if entry.bytes > _GRAPH_BYTES:
        raise SsmExportError(
            errors.GRAPH_INVALID,
            f"{relative} has {entry.bytes / 1e6:.1f} MB without its weights, "
            f"more than {_GRAPH_BYTES / 1e6:.0f}",
        )
    return entry


def _copy_side_files(bundle: Bundle, checkpoint: Checkpoint) -> list[FileEntry]:
    entries = []
    for file in checkpoint.side_files:
        shutil.copyfile(file, bundle.path / file.name)
        entries.append(bundle.entry(file.name))
    return entries


def _choose_lowering(
    bundle: Bundle, options: ExportOptions, *, large: bool, progress: Progress
) -> None:
    manifest = bundle.manifest
    if options.lowering != AUTO:
        why = "plugins run in TensorRT only" if options.lowering == PLUGIN else "asked for"
        manifest.lowering = {"chosen": _runs_here(options), "why": why, "measured": {}}
    elif large:
        why = f"not measured, the weights have {manifest.weights.bytes / 1e9:.1f} GB; "
        manifest.lowering = {
            "chosen": "ort",
            "why": why + "ONNX Runtime's fused operators are the faster ones on smaller models",
            "measured": {},
        }
    else:
        from ssm_export.benchmarking.choose import choose_lowering

        manifest.lowering = choose_lowering(bundle, (*LOWERINGS,), progress=progress)
