"""How the C++ runner binds states, orders its work and judges tokens.

With a toy model on a stand-in for the CUDA driver (samples/cpp_runner/tests), against a plain loop,
under the address and undefined-behaviour sanitizers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from runner_builds import run

from ssm_export.bundle import Bundle, Manifest
from ssm_export.verification.gates import Gates
from ssm_export.verification.measure import LOGITS, rms
from ssm_export.verification.rounding import MARGIN, floor_of, seen_by

pytestmark = pytest.mark.slow


def test_quantiles(parts: Path) -> None:
    times = np.random.default_rng(3).gamma(2, size=37)
    for share in (0.0, 0.5, 0.9, 0.99, 1.0):
        found = float(run(parts, "quantile", str(share), *map(repr, map(float, times))).stdout)
        assert found == pytest.approx(np.quantile(times, share), rel=1e-7)
    assert float(run(parts, "quantile", "0.5", "4").stdout) == 4


def test_decoding_on_the_stand_in(parts: Path) -> None:
    """1024 ways: one buffer or two, with graphs or without, batches, lengths, pieces, types."""
    said = run(parts, "decode")
    assert (said.returncode, said.stdout.strip(), said.stderr) == (0, "1024", "")


PLAIN_STEP = ["upload", "step", "download"]
CAPTURED = [f"captured {one}" for one in PLAIN_STEP]
CLEARED = ["clear", "clear"]
ONE_PREFILL = ["upload", "prefill", "download"]
PIECES = ["upload", "prefill", "upload", "prefill", "upload", "prefill", "download"]


def test_the_order_of_work_with_alternating_buffers(parts: Path) -> None:
    """5 tokens in pieces of 2: three runs, so the first step is the second way around."""
    history = run(parts, "history", "0", "1").stdout.splitlines()
    warm = [*CLEARED, *ONE_PREFILL, *ONE_PREFILL, *PLAIN_STEP, *PLAIN_STEP, *CAPTURED, *CAPTURED]
    graphs = {number: [f"graph {number}", *PLAIN_STEP] for number in (0, 1)}
    warm += [*graphs[0], *graphs[1], *CLEARED, "warm"]
    assert history == [*warm, *PIECES, *graphs[1], *graphs[0], *graphs[1]]


def test_the_order_of_work_in_place(parts: Path) -> None:
    history = run(parts, "history", "1", "1").stdout.splitlines()
    assert history.count("captured step") == 1
    timed = history[history.index("warm") + 1 :]
    assert timed == [*PIECES, *(["graph 0", *PLAIN_STEP] * 3)]


def test_the_order_of_work_without_graphs(parts: Path) -> None:
    history = run(parts, "history", "0", "0").stdout.splitlines()
    assert not any("graph" in one or "captured" in one for one in history)
    assert history[history.index("warm") + 1 :] == [*PIECES, *(PLAIN_STEP * 3)]


def test_what_fails_on_the_gpu(parts: Path) -> None:
    said = dict(line.split(": ", 1) for line in run(parts, "failures").stdout.splitlines())
    assert "a buffer of 12 bytes failed: CUDA_ERROR_OUT_OF_MEMORY (2)" in said["no memory"]
    assert said["not capturable"] == "no graphs: the engine cannot be captured"
    for name in ("capture fails", "no instance"):  # it goes on without graphs
        assert said[name].startswith("no graphs: CUDA_ERROR_OTHER (9)")
    assert "the CUDA graph of a step failed" in said["launch fails"]
    assert said["engine fails"].startswith("SSM-E505  prefill engine: ")
    assert "the GPU failed" in said["GPU fails"]
    assert "a logit of row 0 is no number" in said["one buffer for an engine that needs two"]
    for name in ("no GPU", "old driver"):
        assert said[name].startswith("SSM-E602") and said[name].endswith(" 3")
    assert said["left over"] == "0"


def test_what_only_tensorrt_rtx_has(parts: Path) -> None:
    """Kernels are compiled before a capture, and a context is asked whether it can be captured."""
    assert run(parts, "runtime_options").stdout.splitlines() == [
        "plain: capturable 1",
        "rtx: strategy 1, capturable 1, lazy 0",
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("state", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_the_near_tie_of_the_table(
    precision: str, state: str, floor: float, parts: Path, copied: Path, built: Bundle
) -> None:
    recorded = {"nmse": 0.0, "element": floor}
    rounding = {"prefill": {LOGITS: {"nmse": 0.0, "element": 1e-9}}}
    rounding |= {"prefill tensorrt": {LOGITS: recorded}}
    manifest: Manifest = dataclasses.replace(
        built.manifest, precision=precision, state_dtype=state, rounding=rounding
    )
    (copied / "manifest.json").write_text(manifest.to_json())
    scale = rms(np.load(copied / "parity" / "prefill.npz")["logits"])
    gates = Gates(precision, state, manifest.sizes["L"])
    error = floor_of(seen_by(rounding, "tensorrt"), "prefill", LOGITS).element
    wanted = max(gates.near_tie(scale), 2 * MARGIN * error * scale)
    found = float(run(parts, "near_tie", copied, "tensorrt").stdout)
    assert found == pytest.approx(wanted, rel=1e-6)
