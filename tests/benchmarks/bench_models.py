"""Whole models on the CPU: our graphs against transformers and against the MatMuls alone.

Random weights at published sizes, fp32, batch 1, two threads, everything in one run, so the ratios
hold although the machine may be noisy. Nothing is timed before the bundle has passed verify.

    python tests/benchmarks/bench_models.py                     # mamba-130m and mamba2-130m
    python tests/benchmarks/bench_models.py --size mamba2-130m --layers 4 --lengths 1,64,512,1024
    python tests/benchmarks/bench_models.py --export mamba-2.8b # export time and memory, fp16
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results")
THREADS = 2
PAUSE_S = 0.3
SHORT_S = 0.2
MOST_FOR_TRANSFORMERS = 512


def main() -> None:
    """Run the chosen benchmark, print a table, and write it to ``results/``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", help="a published size; may be repeated")
    parser.add_argument("--layers", type=int, help="fewer layers than published")
    parser.add_argument("--lengths", default="512,1024,8192", help="prefill lengths")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--no-transformers", action="store_true", help="leave its model out")
    parser.add_argument("--export", metavar="SIZE", help="only export this size in fp16")
    parser.add_argument("--write", action="store_true", help="write to results/")
    options = parser.parse_args()
    if options.export:
        rows = [measure_export(options.export)]
    else:
        lengths = [int(length) for length in options.lengths.split(",")]
        rows = []
        for size in options.size or ["mamba-130m", "mamba2-130m"]:
            rows += measure_model(size, lengths, options)
    show(rows)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        name = f"export-{options.export}" if options.export else "models-cpu"
        document = {"machine": machine(), "command": " ".join(sys.argv), "rows": rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


def measure_model(
    size: str, lengths: list[int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Export one size, then time our graphs, the floor and transformers in turn."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, model = random_checkpoint(size, Path(folder), options.layers)
        bundle = Path(folder) / "bundle"
        run_export(checkpoint, bundle)
        from ssm_export.bundle import Bundle
        from ssm_export.engines import open_runner
        from ssm_export.engines.runner import Recurrent

        opened = Bundle.open(bundle)
        runner = open_runner(opened, "onnxruntime", threads=THREADS)
        ours = Recurrent(opened, runner)
        floor = Floor(opened.graph_path("prefill", "canonical"))
        rng = np.random.default_rng(0)
        rows = []
        for length in sorted({1, *lengths}):
            ids = rng.integers(0, opened.manifest.sizes["V"], (1, length))
            state = ours.initial_state(1)
            call = ours.step if length == 1 else ours.prefill
            contestants: dict[str, Callable[[], object]] = {
                "ours": lambda call=call, ids=ids, state=state: call(ids, state),
                "floor": lambda length=length: floor.run(length),
            }
            if not options.no_transformers and length <= MOST_FOR_TRANSFORMERS:
                contestants["transformers"] = lambda ids=ids: torch_run(model, ids)
            measured = in_turn(contestants, options.repetitions)
            rows.append({"size": size, "tokens": length, **measured})
        runner.close()
        return rows


def in_turn(contestants: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median milliseconds of each, run one after the other in every round.

    A runtime's threads go on spinning for a while after a call and would slow the next contestant,
    so each begins after a pause; short calls are then repeated, and the first is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repetitions + 1):
        for name, call in contestants.items():
            time.sleep(PAUSE_S)
            begun = time.perf_counter()
            call()
            found = [time.perf_counter() - begun]
            if found[0] < SHORT_S:
                found = []
                for _ in range(9):
                    begun = time.perf_counter()
                    call()
                    found.append(time.perf_counter() - begun)
            if repetition:
                times[name] += [seconds * 1e3 for seconds in found]
    return {f"{name}_ms": statistics.median(values) for name, values in times.items()}


def random_checkpoint(size: str, folder: Path, layers: int | None) -> tuple[Path, Any]:
    """Random weights at a published size, saved in the transformers layout, and the model."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    values = config_of(size)
    if layers:
        values["num_hidden_layers"] = layers
    config = transformers.AutoConfig.for_model(family_of(size), **values)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    path = folder / "checkpoint"
    model.save_pretrained(path)
    return path, model


def torch_run(model: Any, ids: np.ndarray) -> object:
    """One forward of transformers' model, logits of the last token."""
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.as_tensor(ids), use_cache=True, logits_to_keep=1)


class Floor:
    """A graph that holds only the MatMuls of another, each with an input of its own.

    Of every product one row is kept, so nothing is optimised away and nothing large is copied out.
    """

    def __init__(self, path: Path) -> None:
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper

        source = onnx.load(str(path), load_external_data=False)
        weights = {tensor.name: tensor for tensor in source.graph.initializer}
        first = helper.make_tensor("first", TensorProto.INT64, [1], [0])
        nodes, inputs, outputs, used = [], {}, [], [first]
        for node in source.graph.node:
            if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
                continue
            weight = weights[node.input[1]]
            head = node.op_type == "Gemm"
            width = weight.dims[1] if head else weight.dims[0]
            name = f"head{width}" if head else f"x{width}"
            shape = [1, width] if head else [1, "time", width]
            inputs[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            product = f"{node.name}/product"
            extra = {"transB": 1} if head else {}
            nodes.append(helper.make_node(node.op_type, [name, weight.name], [product], **extra))
            kept = f"{node.name}/kept"
            axis = 0 if head else 1
            nodes.append(helper.make_node("Gather", [product, "first"], [kept], axis=axis))
            outputs.append(helper.make_tensor_value_info(kept, TensorProto.FLOAT, None))
            used.append(weight)
        graph = helper.make_graph(nodes, "floor", list(inputs.values()), outputs, used)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        self.path = path.with_name("floor.onnx")
        onnx.save(model, str(self.path))
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(str(self.path), session)
        self.names = list(inputs)
        self.feeds: dict[int, dict[str, np.ndarray]] = {}

    def run(self, length: int) -> object:
        """Every product once, for ``length`` tokens."""
        if length not in self.feeds:  # made in the round that is not counted
            rng = np.random.default_rng(0)
            shapes = {
                name: (1, int(name[4:])) if name.startswith("head") else (1, length, int(name[1:]))
                for name in self.names
            }
            self.feeds = {
                length: {
                    name: rng.standard_normal(shape).astype(np.float32)
                    for name, shape in shapes.items()
                }
            }
        return self.session.run(None, self.feeds[length])


def measure_export(size: str) -> dict[str, Any]:
    """Export a size in fp16: seconds, and peak memory against the weights written."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = big_checkpoint(size, Path(folder))
        bundle = Path(folder) / "bundle"
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        begun = time.perf_counter()
        run_export(checkpoint, bundle, "--precision", "fp16")
        seconds = time.perf_counter() - begun
        peak = max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, before) * 1024
        weights = (bundle / "onnx" / "weights.data").stat().st_size
        graphs = max(file.stat().st_size for file in (bundle / "onnx").glob("*.onnx"))
        return {
            "size": size,
            "seconds": seconds,
            "weights_gb": weights / 1e9,
            "peak_gb": peak / 1e9,
            "peak_minus_1gb_over_weights": (peak - 1e9) / weights,
            "largest_graph_mb": graphs / 1e6,
        }


def big_checkpoint(size: str, folder: Path) -> Path:
    """Random fp16 weights written shard by shard, so that making them costs little memory."""
    import torch
    import transformers
    from safetensors.torch import save_file

    config = transformers.AutoConfig.for_model(family_of(size), **config_of(size))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    folder = folder / "checkpoint"
    folder.mkdir()
    config.save_pretrained(folder)
    rng = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    shard: dict[str, Any] = {}
    count = 0

    def flush() -> None:
        nonlocal shard, count
        if shard:
            name = f"model-{count:05d}.safetensors"
            save_file(shard, folder / name, metadata={"format": "pt"})
            index.update(dict.fromkeys(shard, name))
            shard, count = {}, count + 1

    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith("A_log"):
            value = torch.log(torch.rand(shape, generator=rng) * 15 + 1)
        elif name.endswith(("dt_bias", "dt_proj.bias")):
            value = torch.rand(shape, generator=rng) * 4 - 7
        elif len(shape) == 1:
            value = torch.ones(shape)
        else:
            value = torch.randn(shape, generator=rng) * 0.02
        shard[name] = value.half()
        if sum(tensor.nbytes for tensor in shard.values()) > 500_000_000:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return folder


def run_export(checkpoint: Path, bundle: Path, *extra: str) -> None:
    """Export in a process of its own."""
    command = [sys.executable, "-m", "ssm_export", "export", str(checkpoint), "-o", str(bundle)]
    subprocess.run([*command, *extra], check=True, stdout=subprocess.DEVNULL)


def config_of(size: str) -> dict[str, Any]:
    """config.json values of a published size, from ``configs/models/``."""
    family = yaml.safe_load((ROOT / "configs" / "models" / f"{family_of(size)}.yaml").read_text())
    return dict(family["sizes"][size])


def family_of(size: str) -> str:
    """``mamba2-130m`` → ``mamba2``."""
    return size.split("-")[0]


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    import onnxruntime
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    return {
        "cpu": cpu,
        "threads": str(THREADS),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows, with ratios where there are two to compare."""
    from rich.console import Console
    from rich.table import Table

    for row in rows:
        if "floor_ms" in row:
            row["ours_over_floor"] = row["ours_ms"] / row["floor_ms"]
        if "transformers_ms" in row:
            row["transformers_over_ours"] = row["transformers_ms"] / row["ours_ms"]
        if "ours_ms" in row:
            row["ours_ms_per_token"] = row["ours_ms"] / row["tokens"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns)
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        table.add_row(*(_shown(cell) for cell in cells))
    Console(width=200).print(table)


def _shown(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.3f}" if cell == 0 or abs(cell) >= 0.01 else f"{cell:.1e}"


if __name__ == "__main__":
    main()
