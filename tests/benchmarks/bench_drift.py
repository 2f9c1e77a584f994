"""How far the demo checkpoints drift while they decode held-out source text token by token.

    python tests/benchmarks/bench_drift.py                    # types of the state, 65 536 steps
    python tests/benchmarks/bench_drift.py --stream 1000000   # one session; memory, and float64

The first table is about the state alone: the weights are the float ones, and numpy rounds the state
after every step. The second holds a session against the torch model in float64.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_models import RESULTS, ROOT, THREADS, machine, run_export, show

TRAIN_DEMO = ROOT / "samples" / "train_demo"
DEMOS = ("mamba-bytes", "mamba2-bytes")
PIECE = 1024
"""Tokens that the float64 model reads at a time."""
SAMPLES = 20
"""How often memory is looked at in a stream."""


def main() -> None:
    """Run the chosen benchmark, print a table, and write it to ``results/``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=DEMOS, help="may be repeated")
    parser.add_argument("--steps", default="4096,65536", help="where states are compared")
    parser.add_argument("--stream", type=int, metavar="TOKENS", help="decode so many tokens")
    parser.add_argument("--write", action="store_true", help="write to results/")
    options = parser.parse_args()
    steps = [int(count) for count in options.steps.split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or DEMOS:
            bundle = Path(folder) / name
            run_export(TRAIN_DEMO / name, bundle, "--parity", "quick")
            if options.stream:
                marks = [count for count in steps if count < options.stream]
                rows += measure_stream(name, bundle, [*marks, options.stream])
            else:
                rows += measure_types(name, bundle, steps)
    show(rows)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        document = {"machine": machine(), "command": " ".join(sys.argv), "rows": rows}
        path = RESULTS / ("session-stream.json" if options.stream else "state-drift.json")
        path.write_text(json.dumps(document, indent=2) + "\n")


def text(count: int) -> np.ndarray:
    """(count,) bytes of files that the checkpoints were not trained on, over and over."""
    sys.path.insert(0, str(TRAIN_DEMO))
    from data import held_out_text

    return np.resize(np.frombuffer(held_out_text(), np.uint8), count).astype(np.int64)


def measure_types(name: str, folder: Path, steps: list[int]) -> list[dict[str, Any]]:
    """A row for each type of the state and number of steps."""
    from ssm_export import Bundle
    from ssm_export.engines import Recurrent, open_runner
    from ssm_export.quantization.drift import state_drift

    bundle = Bundle.open(folder)
    runner = open_runner(bundle, threads=THREADS)
    found = state_drift(Recurrent(bundle, runner), text(max(steps)), steps=steps, limit_seconds=1e9)
    runner.close()
    return [
        {"model": name, "state": dtype, **vars(point)}
        for dtype, points in found.items()
        for point in points
    ]


def measure_stream(name: str, folder: Path, marks: list[int]) -> list[dict[str, Any]]:
    """A row for each of the rising marks of one stream: seconds, memory, error of the states."""
    import psutil

    from ssm_export import Bundle, Session
    from ssm_export.references import make_reference
    from ssm_export.verification.gates import Gates

    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    layers = manifest.sizes["L"]
    gate = Gates(manifest.precision, manifest.state_dtype, layers).drift(layers)
    ids = text(marks[-1])[None]
    every = max(1, marks[-1] // SAMPLES)
    process = psutil.Process()
    resident: list[int] = []
    reached: dict[int, tuple[float, dict[str, np.ndarray]]] = {}
    with Session(bundle, threads=THREADS) as session:
        began = time.perf_counter()
        for at in range(marks[-1]):
            session.step(ids[:, at : at + 1])
            if at % every == every - 1:
                resident.append(process.memory_info().rss)
            if at + 1 in marks:
                reached[at + 1] = (time.perf_counter() - began, session.state.arrays())
    checkpoint, exact = make_reference(bundle, "torch", str(TRAIN_DEMO / name))
    rows = []
    for mark, (seconds, states) in reached.items():
        _, want = exact.last_logits(ids[:, :mark], piece=PIECE)  # type: ignore[attr-defined]
        worst = max((relative(states[key], value), key) for key, value in want.items())
        row: dict[str, Any] = {"model": name, "tokens": mark, "seconds": seconds}
        row |= {"worst_relative_l2": worst[0], "state": worst[1]}
        row["gate_after_4096_steps"] = gate
        if mark == marks[-1]:
            row["resident_mb_first_quarter"] = resident[len(resident) // 4] / 1e6
            row["resident_mb_most_after"] = max(resident[len(resident) // 4 :]) / 1e6
        rows.append(row)
    checkpoint.close()
    return rows


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Relative L2 error."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


if __name__ == "__main__":
    main()
