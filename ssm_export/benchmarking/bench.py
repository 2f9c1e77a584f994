"""Time prefill, first token and decode of a bundle, after its checks have passed on the runner."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ssm_export import errors, telemetry
from ssm_export.benchmarking.baseline import Baseline, read_baseline
from ssm_export.benchmarking.ceiling import target_of, with_ceilings
from ssm_export.benchmarking.comparison import cannot_tell
from ssm_export.benchmarking.energy import Pass, energies, run_alone, without_energy
from ssm_export.benchmarking.outputs import (
    check_outputs,
    left_alone,
    left_alone_note,
    write_outputs,
)
from ssm_export.benchmarking.report import BLOCKS, BenchReport, Row, make_row
from ssm_export.benchmarking.timing import MemoryPeak
from ssm_export.benchmarking.verified import passed_checks
from ssm_export.benchmarking.work import (
    DecodeWork,
    PromptWork,
    Work,
    graph_of,
    switch_graph,
)
from ssm_export.bundle import Bundle, write_atomically
from ssm_export.documents import versions
from ssm_export.engines.runner import Recurrent, Runner
from ssm_export.errors import SsmExportError
from ssm_export.progress import SILENT, Progress
from ssm_export.verification.opening import OneForm, opened

WARMUP: Final = 2
REPETITIONS: Final = 10
CUDA_GRAPH: Final = ("on", "off", "both")
_ONE_FORM: Final = (
    "Memory is short: one graph was loaded at a time, so the rows did not take turns, and the "
    "first token after a prompt was not timed."
)


@dataclass(frozen=True)
class _Sweep:
    """What is to be measured."""

    prefill: tuple[int, ...]
    decode: int
    depth: tuple[int, ...]
    batch: tuple[int, ...]
    warmup: int
    repetitions: int | None

    def __post_init__(self) -> None:
        named = [("--prefill", number, 1) for number in self.prefill]
        named += [("--batch", number, 1) for number in self.batch]
        named += [("--depth", number, 0) for number in self.depth]
        named += [("--decode", self.decode, 0), ("--warmup", self.warmup, 0)]
        if self.repetitions is not None:
            named.append(("--repetitions", self.repetitions, 1))
        for option, number, least in named:
            if number < least:
                raise SsmExportError(
                    errors.BAD_OPTION, f"{option} is {number}", fix=f"give at least {least}"
                )
        if not self.batch or not (self.prefill or (self.decode and self.depth)):
            raise SsmExportError(
                errors.BAD_OPTION,
                "there is nothing to measure",
                fix="give --prefill, --decode, --batch",
            )

    @property
    def least(self) -> int:
        """Repetitions that there will be at least."""
        return REPETITIONS if self.repetitions is None else self.repetitions

    @property
    def blocks(self) -> int:
        """Rounds over everything."""
        return min(BLOCKS, self.least)

    def work(self, model: Recurrent, graphs: Sequence[bool | None], steps: bool) -> list[Work]:
        """Everything that is timed, in the order of the report."""
        made: list[Work] = []
        for size in self.batch:
            made += [
                PromptWork(model, tokens, size, first_token=steps and self.decode > 0)
                for tokens in self.prefill
            ]
            if self.decode:
                made += [
                    DecodeWork(model, self.decode, size, depth, graph)
                    for depth in self.depth
                    for graph in graphs
                ]
        return made


def bench(
    bundle: Bundle | str | os.PathLike[str],
    *,
    runner: str | Runner = "onnxruntime",
    lowering: str | None = None,
    prefill: Sequence[int] = (128, 1024),
    decode: int = 64,
    depth: Sequence[int] = (0,),
    batch: Sequence[int] = (1,),
    threads: int | None = None,
    cuda_graph: str | None = None,
    target: str | None = None,
    baseline: str | os.PathLike[str] | None = None,
    outputs: Sequence[str | os.PathLike[str]] = (),
    warmup: int = WARMUP,
    repetitions: int | None = None,
    force_verify: bool = False,
    save: bool = True,
    progress: Progress = SILENT,
) -> BenchReport:
    """Measure a bundle on a runner.

    The repetitions of every row are dealt to five blocks, and the rows take turns in each, so that
    a machine that drifts shows it and no row has the slow moments to itself. Where the power of the
    device is sampled, every row runs once more, alone, for its energy.

    Args:
        bundle: an open bundle or its folder.
        runner: name of a runtime, or a runner that has loaded this bundle already.
        lowering: which graphs; the bundle's default when None.
        prefill: prompt lengths in tokens.
        decode: tokens that one repetition decodes one by one; 0 for no decode and no first token.
        depth: tokens that are in the state when decoding begins.
        batch: batch sizes.
        threads: CPU threads; the runtime's choice when None.
        cuda_graph: ``on``, ``off`` or ``both``: decode in a CUDA graph; as the runner is when
            None.
        target: hold the rows against the predicted ceiling of this target; the machine's own, as
            far as it is known, when None.
        baseline: an earlier report to compare with.
        outputs: files to write the report to, by suffix ``.md``, ``.csv`` or ``.json``. Neither
            they nor the saved report ever overwrite the baseline: one that followed every run
            would hide a bundle that gets slower a little each time.
        warmup: calls before the clock starts; in the blocks after the first, one of prefill.
        repetitions: times that each prefill and each decode is repeated; when None, 10, and more
            where they are short.
        force_verify: run the checks although the bundle's last report shows them passed for these
            very files on this runner.
        save: write ``reports/bench-<runner>.json``.
        progress: shows how far it is.

    Returns:
        the report; its ``ok`` is false when a row is slower than the baseline beyond the noise, or
        so much slower inside a noisy run that it cannot be ruled out.

    Raises:
        SsmExportError: ``NOT_VERIFIED`` when a check fails, ``BAD_OPTION`` for a number below one
            or a CUDA graph where there is none, ``BAD_BASELINE``, ``UNKNOWN_TARGET``.
    """
    sweep = _Sweep(tuple(prefill), decode, tuple(depth), tuple(batch), warmup, repetitions)
    files = check_outputs(outputs)
    earlier = _read_baseline(baseline, sweep)
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    with opened(bundle, runner, lowering, threads) as loaded:
        aim = target_of(target, loaded.info.device)
        graphs = _graphs(loaded, cuda_graph)
        # A runner that holds one graph at a time would load a graph anew between two rows.
        one_form = isinstance(loaded, OneForm)
        model = Recurrent(bundle, loaded)
        work = sweep.work(model, graphs, steps=not one_form)
        measured = [row for piece in work for row in piece.measured]
        present: dict[str, Any] = {
            "machine": _machine(),
            "runner": loaded.info.name,
            "device": loaded.info.device,
            "lowering": loaded.info.lowering,
            "weights_sha256": bundle.manifest.weights.sha256,
            "threads": threads,
            "warmup": warmup,
            "repetitions": sweep.least,
        }
        if earlier is not None:
            earlier.check(present, [row.key for row in measured])
        verified = passed_checks(bundle, loaded, progress, force_verify)
        peak = MemoryPeak()
        graph_before = graph_of(loaded)
        with telemetry.record(loaded.info.device) as recorder:
            recorder.busy()
            passes = _run(work, sweep, recorder, together=not one_form, progress=progress)
        switch_graph(loaded, graph_before)
        said = recorder.summary()
        moved = bytes_per_token(bundle)
        energy = energies(passes, recorder)
        rows: tuple[Row, ...] = tuple(
            make_row(row, loaded.info.name, moved, energy.get(id(row))) for row in measured
        )
        rows, prediction = with_ceilings(bundle, aim, rows, said["power_mode"])
        used = {**versions(), **loaded.info.versions}
        compared = None
        if earlier is not None:
            compared = earlier.compare(rows, used, present["machine"])
        saved = bundle.path / f"reports/bench-{loaded.info.name}.json"
        wanted = [*files, saved] if save else files
        kept = left_alone(wanted, None if earlier is None else earlier.path)
        notes = [
            *([_ONE_FORM] if one_form else []),
            *without_energy(passes, recorder),
            *cannot_tell(compared),
            *left_alone_note(kept),
        ]
        report = BenchReport(
            bundle=str(bundle.path),
            precision=bundle.manifest.precision,
            state_dtype=bundle.manifest.state_dtype,
            rows=rows,
            bytes_per_token=moved,
            peak_memory_bytes=peak.bytes(),
            peak_memory_since=peak.since,
            verified=verified,
            blocks=sweep.blocks,
            versions=used,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            telemetry=said,
            prediction=prediction,
            target=None if aim is None else aim.name,
            comparison=compared,
            notes=tuple(notes),
            **present,
        )
    write_outputs(report, [file for file in files if file not in kept])
    if save and saved not in kept:
        saved.parent.mkdir(exist_ok=True)
        document = report.as_json()
        del document["bundle"]  # the report lies in it, and the folder may be moved
        write_atomically(saved, json.dumps(document, indent=2) + "\n")
    return report


def bytes_per_token(bundle: Bundle) -> dict[str, int]:
    """What one decoded token moves: the weights once, and each row's states in and out.

    An embedding that is not shared with the head is counted whole, though one row of it is read.
    """
    states = sum(2 * state.bytes_per_row for state in bundle.manifest.states)
    return {"weights": bundle.manifest.weights.bytes, "states_per_row": states}


def _run(
    work: Sequence[Work],
    sweep: _Sweep,
    recorder: telemetry.Recorder,
    *,
    together: bool,
    progress: Progress,
) -> tuple[Pass, ...]:
    """Time every block, of all rows in turn or one row after the other, and then each row alone
    for its energy."""
    task = progress.task("bench", total=len(work) * sweep.blocks)
    whole, rest = divmod(sweep.least, sweep.blocks)
    sizes = [whole + (at < rest) for at in range(sweep.blocks)]
    exact = sweep.repetitions is not None
    alone = None
    passes: tuple[Pass, ...] = ()
    for group in [work] if together else [[piece] for piece in work]:
        for at in range(sweep.blocks):
            for piece in group:
                piece.block(sizes[at], piece.warmup_calls(sweep.warmup, at), exact)
                task.advance()
        if recorder.has_power():
            if alone is None:
                alone = progress.task("energy", total=sum(len(piece.measured) for piece in work))
            passes += run_alone(group, recorder, sweep.repetitions or 1, alone)
    return passes


def _graphs(runner: Runner, wanted: str | None) -> tuple[bool | None, ...]:
    now = graph_of(runner)
    if wanted is None:
        return (now,)
    if wanted not in CUDA_GRAPH:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"there is no '{wanted}'",
            where="--cuda-graph",
            fix=f"use {', '.join(CUDA_GRAPH)}",
        )
    if now is None:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the runner '{runner.info.name}' on {runner.info.device} has no CUDA graphs",
            where="--cuda-graph",
            fix="leave it out",
        )
    return {"on": (True,), "off": (False,), "both": (True, False)}[wanted]


def _read_baseline(path: str | os.PathLike[str] | None, sweep: _Sweep) -> Baseline | None:
    if path is None:
        return None
    if sweep.blocks < BLOCKS:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"{sweep.least} repetitions are too few to know the noise",
            where="--repetitions",
            fix=f"give {BLOCKS} or more to compare with a baseline",
        )
    return read_baseline(Path(path))


def _machine() -> dict[str, Any]:
    from ssm_export.machine import machine_facts

    return dict(machine_facts())
