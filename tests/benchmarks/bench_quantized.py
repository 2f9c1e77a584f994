"""Quantized models on the CPU against their float bundle; size, time and memory of quantizing.

Random weights at published sizes. Decode and prefill are measured in one run in which all bundles
take turns, so the ratios hold although the machine may be noisy. 24 layers of random weights
amplify any rounding beyond all use, so quality is not checked here: tests do, on trained models.

    python tests/benchmarks/bench_quantized.py                       # mamba-130m and mamba2-130m
    python tests/benchmarks/bench_quantized.py --make mamba-2.8b --recipe w4a16   # memory, fp16
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_models import (
    RESULTS,
    THREADS,
    big_checkpoint,
    in_turn,
    machine,
    random_checkpoint,
    run_export,
    show,
)

RECIPES = ("w8a16", "w4a16", "w4a16-small", "w8a8")


def main() -> None:
    """Run the chosen benchmark, print a table, and write it to ``results/``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", help="a published size; may be repeated")
    parser.add_argument("--recipe", action="append", help="a recipe; may be repeated")
    parser.add_argument("--lengths", default="128,512", help="prefill lengths")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--keep", metavar="FOLDER", help="keep bundles there, and use those there")
    parser.add_argument("--make", metavar="SIZE", help="only quantize this size, from fp16")
    parser.add_argument("--tokens", type=int, default=4096, help="calibration tokens of --make")
    parser.add_argument("--write", action="store_true", help="write to results/")
    options = parser.parse_args()
    recipes = options.recipe or list(RECIPES)
    if options.make:
        rows = [row for recipe in recipes for row in (measure_making(options, recipe),)]
        name = f"quantize-{options.make}"
    else:
        lengths = [1, *(int(length) for length in options.lengths.split(","))]
        rows = []
        for size in options.size or ["mamba-130m", "mamba2-130m"]:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(options.keep or temporary) / size
                rows += measure_speed(size, folder, recipes, lengths, options.repetitions)
        name = "quantized-cpu"
    show(rows)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        document = {"machine": machine(), "command": command(options), "rows": rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


def command(options: argparse.Namespace) -> str:
    """How this was run; where bundles are kept is nobody else's concern."""
    return " ".join(word for word in sys.argv if word not in ("--keep", options.keep))


def measure_speed(
    size: str, folder: Path, recipes: list[str], lengths: list[int], repetitions: int
) -> list[dict[str, Any]]:
    """Quantize one size with every recipe, then time all bundles in turn."""
    from ssm_export.bundle import Bundle
    from ssm_export.engines import open_runner
    from ssm_export.engines.runner import Recurrent

    bundles = {"float": folder / "float"} | {recipe: folder / recipe for recipe in recipes}
    if not bundles["float"].exists():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint, _ = random_checkpoint(size, folder, None)
        run_export(checkpoint, bundles["float"], "--parity", "quick")
    for recipe in recipes:
        if not bundles[recipe].exists():
            run_quantize(bundles["float"], bundles[recipe], recipe, tokens=1024)
    models = {}
    for name, path in bundles.items():
        opened = Bundle.open(path)
        models[name] = Recurrent(opened, open_runner(opened, "onnxruntime", threads=THREADS))
    rng = np.random.default_rng(0)
    vocabulary = models["float"].bundle.manifest.sizes["V"]
    float_bytes = models["float"].bundle.manifest.weights.bytes
    rows = []
    for length in lengths:
        ids = rng.integers(0, vocabulary, (1, length))
        contestants = {
            name: lambda m=model, ids=ids: (m.step if ids.size == 1 else m.prefill)(
                ids, m.initial_state(1)
            )
            for name, model in models.items()
        }
        row: dict[str, Any] = {"size": size, "tokens": length, **in_turn(contestants, repetitions)}
        for recipe in recipes:
            row[f"{recipe}_faster"] = row["float_ms"] / row[f"{recipe}_ms"]
            row[f"{recipe}_of_fp16"] = models[recipe].bundle.manifest.weights.bytes / (
                float_bytes / 2
            )
        rows.append(row)
    for model in models.values():
        model.runner.close()
    return rows


def measure_making(options: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """Quantize a size from fp16 in a process of its own: seconds, peak memory, size of weights."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "float", Path(folder) / "quantized"
        checkpoint = big_checkpoint(options.make, Path(folder))
        run_export(checkpoint, source, "--precision", "fp16", "--parity", "quick")
        begun = time.perf_counter()
        peak = run_quantize(source, made, recipe, tokens=options.tokens)
        seconds = time.perf_counter() - begun
        weights = [(one / "onnx" / "weights.data").stat().st_size for one in (source, made)]
        return {
            "size": options.make,
            "recipe": recipe,
            "calibration_tokens": options.tokens,
            "seconds": seconds,
            "peak_anonymous_gb": peak,
            "fp16_gb": weights[0] / 1e9,
            "weights_gb": weights[1] / 1e9,
            "share": weights[1] / weights[0],
        }


def run_quantize(source: Path, made: Path, recipe: str, *, tokens: int) -> float:
    """Quantize in a process of its own, on random tokens: the weights are random too.

    Returns:
        the most memory in GB that no file stands behind. Pages of weights files come on top of it
        as far as there is room for them; a process that maps a file twice has them counted twice.
    """
    rng = np.random.default_rng(0)
    vocabulary = json.loads((source / "manifest.json").read_text())["sizes"]["V"]
    ids = made.with_suffix(".npy")
    length = min(512, tokens // 4)
    np.save(ids, rng.integers(0, vocabulary, (-(-tokens // length) + 4, length)))
    command = [sys.executable, "-m", "ssm_export", "quantize", str(source), "-o", str(made)]
    command += ["--recipe", recipe, "--calibration", str(ids), "--no-sensitivity", "--no-verify"]
    command += ["--sequences", str(tokens // length), "--tokens", str(length)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return peak / 1e9


def anonymous_bytes(process: int) -> int:
    """What a process has in memory that is not in a file; 0 when it has just ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
