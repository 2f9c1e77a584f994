"""Other exporters on the same models: how long they take, and how fast their graphs run.

Random weights, fp32, two threads, everything in one run.

    python tests/benchmarks/bench_exporters.py --transformers   # two Mamba layers at 256 tokens
    python tests/benchmarks/bench_exporters.py --mobius         # four mamba2-130m layers

``--mobius`` needs the package ``mobius-onnx`` (0.1.0 was tried); a part whose package is missing
says so and is not run.
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
from bench_models import RESULTS, THREADS, in_turn, machine, random_checkpoint, run_export, show

TRANSFORMERS_TOKENS = 256
LENGTHS = (1, 64, 512, 1024)


def main() -> None:
    """Run the chosen comparisons and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--mobius", action="store_true")
    parser.add_argument("--write", action="store_true", help="write to results/")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.transformers:
        rows.append(against_transformers())
    if options.mobius:
        rows += against_mobius()
    show(rows)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        name = "-".join(n for n in ("transformers", "mobius") if getattr(options, n))
        document = {"machine": machine(), "command": " ".join(sys.argv), "rows": rows}
        (RESULTS / f"exporters-{name}.json").write_text(json.dumps(document, indent=2) + "\n")


def against_transformers() -> dict[str, Any]:
    """Seconds to export two Mamba layers at mamba-130m width, and what the graphs are."""
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    with tempfile.TemporaryDirectory() as folder:
        checkpoint, model = random_checkpoint("mamba-130m", Path(folder), 2)
        begun = time.perf_counter()
        run_export(checkpoint, Path(folder) / "bundle", "--parity", "quick", "--lowering", "native")
        ours = time.perf_counter() - begun
        begun = time.perf_counter()
        run_export(checkpoint, Path(folder) / "only", "--no-verify", "--parity", "quick",
                   "--lowering", "canonical")  # fmt: skip
        unverified = time.perf_counter() - begun
        import torch

        ids = torch.randint(0, 1000, (1, TRANSFORMERS_TOKENS))
        begun = time.perf_counter()
        exported = OnnxExporter().export(model, {"input_ids": ids}, config=OnnxConfig(dynamic=True))
        theirs = time.perf_counter() - begun
        shape = next(v.shape for v in exported.program.graph.inputs if v.name == "input_ids")
        return {
            "model": "mamba, 2 layers",
            "tokens": TRANSFORMERS_TOKENS,
            "ours_s": ours,
            "ours_without_checks_s": unverified,
            "transformers_s": theirs,
            "ratio": theirs / ours,
            "ratio_without_checks": theirs / unverified,
            "transformers_nodes": exported.program.graph.num_nodes(),
            "transformers_input_ids": str(shape),
        }


def against_mobius() -> list[dict[str, Any]]:
    """Milliseconds of four mamba2-130m layers; both give the logits of every position."""
    import onnxruntime

    from ssm_export.bundle import Bundle
    from ssm_export.engines import Recurrent, open_runner

    with tempfile.TemporaryDirectory() as folder:
        checkpoint, _ = random_checkpoint("mamba2-130m", Path(folder), 4)
        graph = mobius_graph(checkpoint, Path(folder))
        if graph is None:
            return [{"model": "mamba2-130m, 4 layers", "mobius_ms": "not run: no mobius-onnx"}]
        bundles = {}
        for name, logits in (("ours", "all"), ("ours_last_logits", "last")):
            run_export(checkpoint, Path(folder) / name, "--parity", "quick", "--logits", logits)
            opened = Bundle.open(Path(folder) / name)
            bundles[name] = Recurrent(opened, open_runner(opened, threads=THREADS))
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(str(graph), session_options)
        past = {
            port.name: np.zeros([size if isinstance(size, int) else 1 for size in port.shape], "f4")
            for port in session.get_inputs()
            if port.name != "input_ids"
        }
        rows = []
        for tokens in LENGTHS:
            ids = np.random.default_rng(0).integers(0, 50000, (1, tokens))
            contestants = {}
            for name, model in bundles.items():
                call, state = model.step if tokens == 1 else model.prefill, model.initial_state(1)
                contestants[name] = lambda call=call, ids=ids, state=state: call(ids, state)
            contestants["mobius"] = lambda ids=ids: session.run(None, {"input_ids": ids, **past})
            found = in_turn(contestants, 7)
            found["mobius_over_ours"] = found["mobius_ms"] / found["ours_ms"]
            rows.append({"model": "mamba2-130m, 4 layers", "tokens": tokens, **found})
        return rows


def mobius_graph(checkpoint: Path, folder: Path) -> Path | None:
    """mobius's graph for the CPU with random weights; None where it is not installed.

    Its speed does not depend on the values, so its weights are not the checkpoint's.
    """
    try:
        from mobius._builder import build_from_module
        from mobius._configs import Mamba2Config
        from mobius.models.mamba import Mamba2CausalLMModel
    except ImportError:
        return None
    import onnx_ir as ir
    import transformers

    config = Mamba2Config.from_transformers(transformers.AutoConfig.from_pretrained(checkpoint))
    package = build_from_module(
        Mamba2CausalLMModel(config), config, "ssm2-text-generation", execution_provider="cpu"
    )
    model = package["model"]
    rng = np.random.default_rng(0)
    for value in model.graph.initializers.values():
        if value.const_value is None:
            shape = [int(size) for size in value.shape]
            values = rng.standard_normal(shape).astype(np.float32) * 0.02
            value.const_value = ir.tensor(values, name=value.name)
    path = folder / "mobius.onnx"
    ir.save(model, path, external_data="mobius.data")
    return path


if __name__ == "__main__":
    main()
