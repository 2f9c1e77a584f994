"""The export stage: checkpoint → verified bundle."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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
    write_atomically,
)
from ssm_export.checkpoints import Checkpoint, open_checkpoint
from ssm_export.engines._plugins import PLUGIN, plugin_lowering
from ssm_export.errors import SsmExportError
from ssm_export.export_target import (
    AUTO,
    compile_kernels,
    compiles_kernels,
    foretell,
    needs_of_model,
    precision_for,
)
from ssm_export.graph_files import CANONICAL, fastest_lowering, is_large, write_graphs
from ssm_export.lowering import LOWERINGS, attach_bodies
from ssm_export.models import family
from ssm_export.models.base import DTYPES, RecurrentLM
from ssm_export.prediction import Needs, Prediction
from ssm_export.progress import SILENT, Progress
from ssm_export.recording import record_parity
from ssm_export.references.torch_model import TorchReference
from ssm_export.targets import get_target
from ssm_export.trace import build_fake, trace
from ssm_export.verification.release import verify_or_refuse
from ssm_export.weights import Weights, write_weights

if TYPE_CHECKING:
    from ssm_export.verification import VerifyReport

EXPORT_REPORT: Final = "reports/export.json"
STATE_DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class ExportOptions:
    """How to export. ``None`` and ``auto`` mean: choose well.

    Args:
        precision: ``auto`` (fp16 for a target, fp32 without one), ``fp32``, ``fp16`` or ``bf16``:
            weights and activations. Scan arithmetic is fp32.
        state_dtype: ``fp32`` or ``fp16``: the SSM states. bf16 drifts and is refused.
        lowering: ``auto`` (the fastest for ONNX Runtime here), ``canonical``, ``native``, ``ort``,
            or ``plugin``: ``native`` graphs for the runtimes here, and beside them the graph that
            TensorRT runs with our plugin library. ``auto`` adds that one too where the target's
            engines are TensorRT's and Triton is here to compile kernels for its chip.
        target: the device it is for; what it will do there is predicted, and a model that
            cannot fit is refused.
        ragged: graphs take ``sequence_lengths (B,)`` for right-padded batches.
        logits: ``last`` or ``all`` positions.
        parity: ``quick`` records prompts only, ``full`` also 4096-token drift and 256 greedy
            tokens, ``auto`` takes ``full`` where the model is small.
        verify: whether the graphs must pass before the bundle appears.
    """

    precision: str = AUTO
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
            raise errors.bf16_state()
        choices: dict[str, tuple[str, ...]] = {
            "precision": (AUTO, *DTYPES),
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
        if self.lowering == PLUGIN and self.target is None:
            raise SsmExportError(
                errors.BAD_OPTION,
                "--lowering plugin needs --target",
                where="--target",
                why="kernels are compiled for one chip",
                fix="--lowering plugin --target jetson-agx-orin; ssm-export list targets has all",
            )
        if self.target is not None:
            target = get_target(self.target)
            if self.lowering == PLUGIN:
                plugin_lowering(target)

    def settled(self) -> ExportOptions:
        """With the precision that ``auto`` stands for."""
        if self.precision != AUTO:
            return self
        return replace(
            self, precision=precision_for(get_target(self.target) if self.target else None)
        )


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        bundle: the bundle's folder; None after a dry run.
        plan: family, sizes, states and files that were (or would be) made.
        verification: the checks that ran before the bundle appeared; None when skipped.
        notes: what to know, one sentence each.
        prediction: what the target will do with it; None without a target.
    """

    bundle: Path | None
    plan: dict[str, Any]
    verification: VerifyReport | None = None
    notes: tuple[str, ...] = field(default=())
    prediction: Prediction | None = None

    def as_json(self) -> dict[str, Any]:
        """The members of the ``--json`` document."""
        checks = self.verification.as_json()["checks"] if self.verification else []
        return {
            "bundle": str(self.bundle) if self.bundle else None,
            "plan": self.plan,
            "target": self.plan["options"]["target"],
            "prediction": self.prediction.as_json() if self.prediction else None,
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
            ``PARITY_FAILED`` when the graphs do not compute what the reference computes,
            ``TOO_LITTLE_MEMORY`` for a model that cannot fit the target.
    """
    options = options or ExportOptions()
    options.check()
    options = options.settled()
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
        needs = needs_of_model(model, all_logits=options.logits == "all")
        target = get_target(options.target) if options.target else None
        prediction, notes = foretell(needs, target, options.lowering) if target else (None, ())
        plan = _plan(model, opened, options, needs)
        plan["kernels"] = compiles_kernels(target, options.lowering)
        made = ExportReport(None, plan, None, notes, prediction)
        if dry_run:
            return made
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
            checks, more = _fill(folder, graphs, weights, opened, model, options, made, progress)
        return replace(made, bundle=Path(output), verification=checks, notes=notes + more)


def _plan(
    model: RecurrentLM, checkpoint: Checkpoint, options: ExportOptions, needs: Needs
) -> dict[str, Any]:
    """What will be made, for people and for ``--dry-run``."""
    return {
        "source": str(checkpoint.path),
        "layout": checkpoint.layout,
        "family": model.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sizes": model.sizes(),
        "weights_bytes": needs.weights_bytes,
        "state_bytes_per_row": needs.states_per_row,
        "options": asdict(options),
    }


def _fill(
    folder: Path,
    graphs: Mapping[str, ir.Model],
    weights: Weights,
    checkpoint: Checkpoint,
    model: RecurrentLM,
    options: ExportOptions,
    planned: ExportReport,
    progress: Progress,
) -> tuple[VerifyReport | None, tuple[str, ...]]:
    """Write every file of the bundle into ``folder``."""
    from ssm_export.machine import tool_versions

    plan = planned.plan
    (folder / "onnx").mkdir()
    write_weights(weights, graphs.values(), folder / WEIGHTS, progress)
    bundle = Bundle(folder, _manifest(model, checkpoint, options, plan, progress))
    manifest = bundle.manifest
    manifest.weights = bundle.entry(WEIGHTS)
    manifest.versions = tool_versions()
    wanted = LOWERINGS if options.lowering == AUTO else tuple({_runs_here(options)} - {CANONICAL})
    notes = write_graphs(bundle, graphs, wanted, progress)
    if options.target is not None:
        notes += compile_kernels(bundle, get_target(options.target), options.lowering, progress)
    manifest.files = tuple(_copy_side_files(bundle, checkpoint))
    exact = TorchReference(model, weights)
    rounded = TorchReference(model, weights, exact=False)
    record_parity(bundle, exact, rounded, options.parity, progress)
    large = is_large(manifest)
    if options.lowering == AUTO:
        manifest.lowering = fastest_lowering(bundle, progress)
    else:
        why = "plugins run in TensorRT only" if options.lowering == PLUGIN else "asked for"
        manifest.lowering = {"chosen": _runs_here(options), "why": why, "measured": {}}
    (folder / "effective_config.yaml").write_text(
        yaml.safe_dump({"export": plan["options"]}, sort_keys=False), encoding="utf-8"
    )
    bundle.save()
    _write_report(bundle, planned)
    report = None
    if options.verify:
        report, left_out = verify_or_refuse(bundle, large=large, progress=progress)
        manifest.verified = True
        bundle.save()
        notes += left_out
    assert (folder / MANIFEST).is_file()
    return report, notes


def _write_report(bundle: Bundle, planned: ExportReport) -> None:
    """Keep what was asked for and predicted, for who opens the bundle later."""
    document = planned.as_json()
    for member in ("bundle", "checks"):  # the report lies in the one, and verify.json has the other
        del document[member]
    (bundle.path / "reports").mkdir(exist_ok=True)
    write_atomically(bundle.path / EXPORT_REPORT, json.dumps(document, indent=2) + "\n")


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


def _runs_here(options: ExportOptions) -> str:
    """The lowering for ONNX Runtime: plugin graphs run in TensorRT only."""
    return "native" if options.lowering == PLUGIN else options.lowering


def _copy_side_files(bundle: Bundle, checkpoint: Checkpoint) -> list[FileEntry]:
    entries = []
    for file in checkpoint.side_files:
        shutil.copyfile(file, bundle.path / file.name)
        entries.append(bundle.entry(file.name))
    return entries
