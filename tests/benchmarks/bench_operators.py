"""Time of one call of each operator on the CPU, at the sizes of mamba-130m and mamba2-130m.

    python tests/benchmarks/bench_operators.py [--tokens 1,64,512] [--repetitions 20] [--json]

Each row is one operator, length and way of running it: the step or chunked body as the ``native``
and the ``ort`` lowering run it, one ONNX ``Scan`` over tokens, and a torch loop over tokens. The
ways are timed in turns within one run, so the ratios hold on a shared machine; correctness is
checked first. Weights are initializers, as in a bundle.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from one_call import assert_correct, make_call, rounded, session  # noqa: E402

from ssm_export.lowering import LOWERINGS, lower  # noqa: E402
from ssm_export.lowering.bodies import call_of  # noqa: E402
from ssm_export.ops import OpSpec, _body, _onnx, all_ops  # noqa: E402
from ssm_export.ops.spec import Call  # noqa: E402

SIZES: dict[tuple[str, str], dict[str, int]] = {
    ("CausalConv1d", "mamba-130m"): {"D": 1536, "K": 4},
    ("CausalConv1d", "mamba2-130m"): {"D": 1792, "K": 4},
    ("SelectiveScan", "mamba-130m"): {"D": 1536, "N": 16},
    ("SsdScan", "mamba2-130m"): {"H": 24, "P": 64, "N": 128, "G": 1},
}
WEIGHTS = ("weight", "bias", "A", "D", "dt_bias")
LOOP_LIMIT = 1024
THREADS = 2
Run = Callable[[], Any]


def main() -> None:
    """Time every operator and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="1,64,512,1024,8192")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--only", help="one operator")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for (name, model), sizes in SIZES.items():
        if options.only in (None, name):
            for tokens in map(int, options.tokens.split(",")):
                spec = all_ops()[name]
                here = {**sizes, "B": options.batch, "T": tokens}
                rows += bench(spec, model, here, options.repetitions)
    if options.json:
        versions = {"onnxruntime": onnxruntime.__version__, "threads": THREADS}
        print(json.dumps({"machine": platform.platform(), **versions, "rows": rows}, indent=2))
        return
    print(f"onnxruntime {onnxruntime.__version__}, {THREADS} threads, {platform.machine()}")
    print(f"{'operator':14} {'size':12} {'B':>2} {'T':>5} {'way':12} {'p50 ms':>9} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['operator']:14} {row['size']:12} {row['batch']:2} {row['tokens']:5} "
            f"{row['way']:12} {row['p50_ms']:9.3f} {row['ratio']:6.2f}"
        )


def bench(spec: OpSpec, model: str, sizes: dict[str, int], repetitions: int) -> list[dict]:  # type: ignore[type-arg]
    """Rows of one operator at one length; ``ratio`` is to its ``native`` way."""
    feeds = rounded(spec, spec.make_inputs(np.random.default_rng(0), sizes))
    tokens = sizes["T"]
    form = "step" if tokens == 1 else "prefill"
    ways: dict[str, Run] = {
        lowering: _session(lower(make_call(spec, feeds, form), lowering).model, spec, feeds)
        for lowering in LOWERINGS
    }
    if tokens > 1 and spec.name in TOKEN_SCANS:
        graph = make_call(spec, feeds, form)
        call = call_of(graph.graph[-1], spec, form)
        body = _onnx.function(spec, "chunked", call, body=TOKEN_SCANS[spec.name])
        graph.functions[body.identifier()] = body
        ways["token Scan"] = _session(lower(graph, "native").model, spec, feeds)
    if 1 < tokens <= LOOP_LIMIT and spec.name in TORCH_LOOPS:
        ways["torch loop"] = TORCH_LOOPS[spec.name](feeds)
    for name, run in ways.items():
        if name != "torch loop" and tokens <= LOOP_LIMIT:
            outputs = dict(zip([port.name for port in spec.outputs], run(), strict=True))
            assert_correct(spec, outputs, feeds)
    medians = _medians(ways, repetitions if tokens <= LOOP_LIMIT else max(repetitions // 5, 3))
    return [
        {
            "operator": spec.name,
            "size": model,
            "batch": sizes["B"],
            "tokens": tokens,
            "way": way,
            "p50_ms": median,
            "ratio": median / medians["native"],
        }
        for way, median in medians.items()
    ]


def _session(model: Any, spec: OpSpec, feeds: Mapping[str, np.ndarray]) -> Run:
    """Run a graph with its weights inside."""
    import onnx_ir as ir

    for value in list(model.graph.inputs):
        if value.name in WEIGHTS:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(feeds[value.name], name=value.name)
            model.graph.register_initializer(value)
    runner = session(model, intra_op_num_threads=THREADS)
    left = {name: value for name, value in feeds.items() if name not in WEIGHTS}
    return lambda: runner.run(None, left)


def _medians(ways: Mapping[str, Run], repetitions: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repetitions + 2):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if turn >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def _selective_token_scan(
    op: Any, call: Call, u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any,
    past: Any, lengths: Any,
) -> Any:  # fmt: skip
    """Mamba-1 as one Scan over tokens in the layout of its equations, the state as (B,D,N)."""
    delta = op.Softplus(op.Add(dt, dt_bias))

    def token(op: Any, state: Any, delta: Any, inflow: Any, B: Any, C: Any) -> Any:
        state = op.Add(op.Mul(op.Exp(op.Mul(delta, A)), state), op.Mul(inflow, B))
        return state, op.Squeeze(op.MatMul(state, C), [2])

    def by_token(x: Any, axis: int) -> Any:
        return op.Unsqueeze(op.Transpose(x, perm=[1, 0, 2]), [axis])

    sequences = [by_token(delta, 3), by_token(op.Mul(delta, u), 3), by_token(B, 2), by_token(C, 3)]
    names = ["state", "delta", "inflow", "B", "C", "y"]
    state, y = _body.scan(op, token, [past], sequences, names, 1)
    y = op.Add(op.Transpose(y, perm=[1, 0, 2]), op.Mul(u, D))
    return op.Mul(y, _body.silu(op, z)), state


def _ssd_token_scan(
    op: Any, call: Call, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any,
    past: Any, lengths: Any,
) -> Any:  # fmt: skip
    """Mamba-2 with one group as one Scan over tokens."""
    delta = _body.time_step(op, dt, dt_bias, call.attributes)
    decay = op.Unsqueeze(op.Transpose(op.Exp(op.Mul(delta, A)), perm=[1, 0, 2]), [3, 4])
    inflow = op.Unsqueeze(op.Transpose(op.Mul(x, op.Unsqueeze(delta, [3])), perm=[1, 0, 2, 3]), [4])
    B_rows = op.Unsqueeze(op.Transpose(B, perm=[1, 0, 2, 3]), [3])
    C_columns = op.Unsqueeze(op.Transpose(C, perm=[1, 0, 2, 3]), [4])

    def token(op: Any, state: Any, decay: Any, inflow: Any, B: Any, C: Any) -> Any:
        state = op.Add(op.Mul(decay, state), op.Mul(inflow, B))
        return state, op.Squeeze(op.MatMul(state, C), [3])

    names = ["state", "decay", "inflow", "B", "C", "y"]
    state, y = _body.scan(op, token, [past], [decay, inflow, B_rows, C_columns], names, 1)
    y = op.Transpose(y, perm=[1, 0, 2, 3])
    return op.Add(y, op.Mul(x, op.Unsqueeze(D, [1]))), state


def _selective_torch_loop(feeds: Mapping[str, np.ndarray]) -> Run:
    import torch

    torch.set_num_threads(THREADS)
    u, dt, A, B, C, D, z, bias, past = (torch.from_numpy(value) for value in feeds.values())

    def run() -> None:
        with torch.inference_mode():
            delta, state, ys = torch.nn.functional.softplus(dt + bias), past, []
            for t in range(u.shape[1]):
                decay = torch.exp(delta[:, t, :, None] * A)
                state = decay * state + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
                ys.append((state @ C[:, t, :, None])[..., 0])
            (torch.stack(ys, 1) + u * D) * torch.nn.functional.silu(z)

    return run


def _ssd_torch_loop(feeds: Mapping[str, np.ndarray]) -> Run:
    import torch

    torch.set_num_threads(THREADS)
    x, dt, A, B, C, D, bias, past = (torch.from_numpy(value) for value in feeds.values())

    def run() -> None:
        with torch.inference_mode():
            delta, state, ys = torch.nn.functional.softplus(dt + bias), past, []
            for t in range(x.shape[1]):
                decay = torch.exp(delta[:, t] * A)[..., None, None]
                inflow = (delta[:, t, :, None] * x[:, t])[..., None]
                state = decay * state + inflow * B[:, t, :, None]
                ys.append((state @ C[:, t, :, :, None])[..., 0])
            torch.stack(ys, 1) + x * D[:, None]

    return run


TOKEN_SCANS = {"SelectiveScan": _selective_token_scan, "SsdScan": _ssd_token_scan}
TORCH_LOOPS = {"SelectiveScan": _selective_torch_loop, "SsdScan": _ssd_torch_loop}

if __name__ == "__main__":
    main()
