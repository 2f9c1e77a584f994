"""Time prefill and decode of a bundle, after its checks have passed on the same runner."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.benchmarking.report import BenchReport, Row
from ssm_export.benchmarking.timing import MemoryPeak, percentiles, timed
from ssm_export.bundle import Bundle, write_atomically
from ssm_export.documents import versions
from ssm_export.engines.runner import Recurrent, Runner
from ssm_export.errors import SsmExportError
from ssm_export.progress import SILENT, Progress, Task
from ssm_export.verification import QUICK, feeding, verify
from ssm_export.verification.opening import opened
from ssm_export.verification.truth import vocabulary
from ssm_export.verification.verifier import REPORT, graph_hashes

WARMUP: Final = 3
REPETITIONS: Final = 10


def bench(
    bundle: Bundle | str | os.PathLike[str],
    *,
    runner: str | Runner = "onnxruntime",
    lowering: str | None = None,
    prefill: Sequence[int] = (128, 1024),
    decode: int = 64,
    batch: Sequence[int] = (1,),
    threads: int | None = None,
    warmup: int = WARMUP,
    repetitions: int = REPETITIONS,
    force_verify: bool = False,
    save: bool = True,
    progress: Progress = SILENT,
) -> BenchReport:
    """Measure a bundle on a runner.

    Args:
        bundle: an open bundle or its folder.
        runner: name of a runtime, or a runner that has loaded this bundle already.
        lowering: which graphs; the bundle's default when None.
        prefill: prompt lengths in tokens.
        decode: tokens that one repetition decodes one by one; 0 for no decode.
        batch: batch sizes.
        threads: CPU threads; the runtime's choice when None.
        warmup: calls of each kind before the clock starts.
        repetitions: times that each prefill and each decode is repeated.
        force_verify: run the checks although the bundle's last report shows them passed for these
            very files on this runner.
        save: write ``reports/bench-<runner>.json``.
        progress: shows how far it is.

    Raises:
        SsmExportError: ``NOT_VERIFIED`` when a check fails, ``BAD_OPTION`` for a number below one.
    """
    _check_numbers(prefill, decode, batch, warmup, repetitions)
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    with opened(bundle, runner, lowering, threads) as loaded:
        verified = _passed_before(bundle, loaded) if not force_verify else ()
        verified = verified or _passes_now(bundle, loaded, progress)
        peak = MemoryPeak()
        model = Recurrent(bundle, loaded)
        moved = bytes_per_token(bundle)
        task = progress.task("bench", total=len(batch) * (len(prefill) + (decode > 0)))
        rows: list[Row] = []
        for size in batch:
            for tokens in prefill:
                rows.append(_prefill_row(model, tokens, size, warmup, repetitions))
                task.advance()
            if decode:
                bars = progress.task(f"decode, batch {size}", total=repetitions)
                rows.append(_decode_row(model, decode, size, warmup, repetitions, moved, bars))
                task.advance()
        info = loaded.info
        report = BenchReport(
            bundle=str(bundle.path),
            runner=info.name,
            device=info.device,
            lowering=info.lowering,
            precision=bundle.manifest.precision,
            state_dtype=bundle.manifest.state_dtype,
            rows=tuple(rows),
            bytes_per_token=moved,
            peak_memory_bytes=peak.bytes(),
            peak_memory_since=peak.since,
            warmup=warmup,
            repetitions=repetitions,
            threads=threads,
            verified=verified,
            machine=_machine(),
            versions={**versions(), **info.versions},
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
    if save:
        path = bundle.path / f"reports/bench-{report.runner}.json"
        path.parent.mkdir(exist_ok=True)
        document = report.as_json()
        del document["bundle"]  # the report lies in it, and the folder may be moved
        write_atomically(path, json.dumps(document, indent=2) + "\n")
    return report


def bytes_per_token(bundle: Bundle) -> dict[str, int]:
    """What one decoded token moves: the weights once, and each row's states in and out.

    An embedding that is not shared with the head is counted whole, though one row of it is read.
    """
    states = sum(2 * state.bytes_per_row for state in bundle.manifest.states)
    return {"weights": bundle.manifest.weights.bytes, "states_per_row": states}


def _prefill_row(model: Recurrent, tokens: int, batch: int, warmup: int, repetitions: int) -> Row:
    ids = _prompt(model, batch, tokens)
    state = model.initial_state(batch)

    def once() -> None:
        feeding.prefill(model, ids, state)

    for _ in range(warmup):
        once()
    times = [timed(once) for _ in range(repetitions)]
    p50, p90, p99 = percentiles(times)
    limit = feeding.longest_chunk(model) or tokens
    return Row(
        phase="prefill",
        tokens=tokens,
        batch=batch,
        runner=model.runner.info.name,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        tokens_per_s=batch * tokens / p50 * 1e3,
        gb_per_s=None,
        samples=len(times),
        pieces=-(-tokens // limit),
    )


def _decode_row(
    model: Recurrent,
    tokens: int,
    batch: int,
    warmup: int,
    repetitions: int,
    moved: dict[str, int],
    task: Task,
) -> Row:
    ids = _prompt(model, batch, tokens)
    state = model.initial_state(batch)
    columns = [ids[:, position : position + 1] for position in range(tokens)]
    step = feeding.Stepper(model, state)
    for count in range(warmup):
        step(columns[count % tokens])
    times: list[float] = []
    for _ in range(repetitions):
        step = feeding.Stepper(model, state)
        times += [timed(partial(step, column)) for column in columns]
        task.advance()
    p50, p90, p99 = percentiles(times)
    moved_bytes = moved["weights"] + batch * moved["states_per_row"]
    return Row(
        phase="decode",
        tokens=tokens,
        batch=batch,
        runner=model.runner.info.name,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        tokens_per_s=batch / p50 * 1e3,
        gb_per_s=moved_bytes / p50 / 1e6,
        samples=len(times),
    )


def _prompt(model: Recurrent, batch: int, tokens: int) -> np.ndarray:
    size = vocabulary(model.bundle.manifest)
    return np.random.default_rng(0).integers(0, size, (batch, tokens), dtype=np.int64)


def _passed_before(bundle: Bundle, runner: Runner) -> tuple[str, ...]:
    """The checks of the bundle's last report, if it passed for these files on this runner."""
    try:
        saved: dict[str, Any] = json.loads((bundle.path / REPORT).read_text(encoding="utf-8"))
        passed = tuple(check["name"] for check in saved["checks"] if check["ok"] is True)
        same = (
            saved["ok"] is True
            and set(QUICK) <= set(passed)
            and saved["runner"] == runner.info.name
            and saved["lowering"] == runner.info.lowering
            and saved["runtime"] == runner.info.versions
            and saved["device"] == runner.info.device
            and saved["files"] == graph_hashes(bundle, runner.info.lowering)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return passed if same else ()


def _passes_now(bundle: Bundle, runner: Runner, progress: Progress) -> tuple[str, ...]:
    report = verify(bundle, runner=runner, checks=QUICK, save=False, progress=progress)
    if not all(check.ok for check in report.checks):
        reasons = [f"{check.name}: {check.where}" for check in report.checks if not check.ok]
        raise SsmExportError(
            errors.NOT_VERIFIED,
            f"no speed is given, since the checks do not pass on {report.runner}: "
            + "; ".join(reasons),
            where=str(bundle.path),
            fix=f"ssm-export verify {bundle.path} --runner {report.runner} --bisect",
        )
    return tuple(check.name for check in report.checks)


def _machine() -> dict[str, Any]:
    from ssm_export.machine import machine_facts

    return dict(machine_facts())


def _check_numbers(
    prefill: Sequence[int], decode: int, batch: Sequence[int], warmup: int, repetitions: int
) -> None:
    named = [("--prefill", number, 1) for number in prefill]
    named += [("--batch", number, 1) for number in batch]
    named += [("--decode", decode, 0), ("--warmup", warmup, 0), ("--repetitions", repetitions, 1)]
    for option, number, least in named:
        if number < least:
            raise SsmExportError(
                errors.BAD_OPTION, f"{option} is {number}", fix=f"give at least {least}"
            )
    if not batch or not (prefill or decode):
        raise SsmExportError(
            errors.BAD_OPTION,
            "there is nothing to measure",
            fix="give --prefill, --decode, --batch",
        )
