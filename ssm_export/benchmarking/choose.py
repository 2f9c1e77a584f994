"""Choosing a lowering by measuring it: a few runs of both graphs, each lowering in turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ssm_export.bundle import Bundle
from ssm_export.engines import Recurrent, open_runner
from ssm_export.progress import SILENT, Progress

PREFILL_TOKENS: Final = 256
ROUNDS: Final = 7
PAUSE_S: Final = 0.1
"""The threads of the session before go on spinning for a while and would slow the next."""
RUNNER: Final = "onnxruntime"


def choose_lowering(
    bundle: Bundle, candidates: Sequence[str], *, progress: Progress = SILENT
) -> dict[str, Any]:
    """Time each lowering of a bundle in ONNX Runtime and take the fastest.

    Prefill and decode count alike: the lowering with the smallest product of its two medians wins.
    The candidates take turns, so a slow moment of the machine meets all of them.

    Args:
        bundle: a bundle whose graphs are written.
        candidates: lowerings that it holds.
        progress: shows one step per candidate and round.

    Returns:
        The manifest's ``lowering``: ``chosen``, ``why``, and ``measured``: lowering to
        ``step_ms`` and ``prefill_ms``.
    """
    task = progress.task("choosing the lowering", len(candidates) * (ROUNDS + 1))
    vocabulary = bundle.manifest.sizes["V"]
    ids = np.random.default_rng(0).integers(0, vocabulary, (1, PREFILL_TOKENS))
    times: dict[str, dict[str, list[float]]] = {
        lowering: {"prefill": [], "step": []} for lowering in candidates
    }
    runners = {lowering: open_runner(bundle, RUNNER, lowering=lowering) for lowering in candidates}
    try:
        for turn in range(ROUNDS + 1):
            for lowering, runner in runners.items():
                model = Recurrent(bundle, runner)
                time.sleep(PAUSE_S)
                begun = time.perf_counter()
                _, state = model.prefill(ids)
                between = time.perf_counter()
                model.step(ids[:, :1], state)  # its weights are cold: the prefill's were in use
                warm = time.perf_counter()
                model.step(ids[:, :1], state)
                ended = time.perf_counter()
                if turn:  # the first turn loads and warms up
                    times[lowering]["prefill"].append(between - begun)
                    times[lowering]["step"].append(ended - warm)
                task.advance()
    finally:
        for runner in runners.values():
            runner.close()
    measured = {
        lowering: {
            "prefill_ms": statistics.median(found["prefill"]) * 1e3,
            "step_ms": statistics.median(found["step"]) * 1e3,
        }
        for lowering, found in times.items()
    }
    chosen = min(measured, key=lambda name: math.prod(measured[name].values()))
    shown = "; ".join(
        f"{name} {found['prefill_ms']:.1f} and {found['step_ms']:.2f} ms"
        for name, found in measured.items()
    )
    why = f"fastest of prefill ({PREFILL_TOKENS} tokens) and step on {RUNNER}: {shown}"
    return {"chosen": chosen, "why": why, "measured": measured}
