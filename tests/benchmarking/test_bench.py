"""Bench gives speed only for a bundle that passes, and says what the speed depends on."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from toy_bundle import D, Fault, K, L, N, PlainRunner, make_toy_bundle

from ssm_export import errors
from ssm_export.benchmarking import bench
from ssm_export.benchmarking.timing import MemoryPeak, percentiles, timed
from ssm_export.errors import SsmExportError
from ssm_export.verification import verify

QUICK = {"prefill": (5, 16), "decode": 4, "warmup": 1, "repetitions": 3}


@pytest.fixture
def bundle(tmp_path):
    return make_toy_bundle(tmp_path / "toy")


class Counting(PlainRunner):
    """Counts the calls of each graph and the tokens they get; a step takes at least 2 ms."""

    def __init__(self, bundle, max_chunk=None):
        super().__init__(bundle, max_chunk)
        self.calls = []

    def run(self, form, feeds):
        self.calls.append((form, *feeds["input_ids"].shape))
        if form == "step":
            time.sleep(0.002)
        return super().run(form, feeds)


def test_rows_are_those_that_were_asked_for(bundle):
    report = bench(bundle, runner=PlainRunner(bundle), batch=(1, 3), **QUICK)
    asked = [(row.phase, row.tokens, row.batch) for row in report.rows]
    assert asked == [
        ("prefill", 5, 1),
        ("prefill", 16, 1),
        ("decode", 4, 1),
        ("prefill", 5, 3),
        ("prefill", 16, 3),
        ("decode", 4, 3),
    ]
    for row in report.rows:
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        per_call = row.tokens if row.phase == "prefill" else 1
        assert row.tokens_per_s == pytest.approx(row.batch * per_call / row.p50_ms * 1e3)


def test_warm_up_is_run_and_not_timed(bundle):
    runner = Counting(bundle)
    report = bench(bundle, runner=runner, prefill=(7,), decode=4, warmup=2, repetitions=3)
    assert runner.calls.count(("prefill", 1, 7)) == 2 + 3
    prefill, decode = report.rows
    assert (prefill.samples, decode.samples) == (3, 3 * 4)
    assert decode.p50_ms >= 2.0
    assert runner.calls[-12 - 2 :] == [("step", 1, 1)] * (12 + 2)


def test_bytes_of_a_decoded_token_are_the_weights_and_the_states_both_ways(bundle):
    report = bench(bundle, runner=PlainRunner(bundle), prefill=(), decode=2, batch=(3,))
    states = 4 * L * ((K - 1) * D + D * N)
    weights = bundle.path.joinpath("onnx/weights.data").stat().st_size
    assert report.bytes_per_token == {"weights": weights, "states_per_row": 2 * states}
    (row,) = report.rows
    assert row.gb_per_s == pytest.approx((weights + 3 * 2 * states) / row.p50_ms / 1e6)


def test_a_long_prompt_is_fed_in_pieces(bundle):
    runner = Counting(bundle, max_chunk=16)
    report = bench(bundle, runner=runner, prefill=(40,), decode=0, warmup=0, repetitions=1)
    assert report.rows[0].pieces == 3
    assert runner.calls[-3:] == [("prefill", 1, 16), ("prefill", 1, 16), ("prefill", 1, 8)]


@pytest.mark.parametrize("form", ["prefill", "step"])
def test_a_bundle_that_fails_verify_gets_no_speed(tmp_path, form):
    bundle = make_toy_bundle(tmp_path / "toy", fault=Fault("weight in_proj", 1, form))
    runner = Counting(bundle)
    with pytest.raises(SsmExportError) as caught:
        bench(bundle, runner=runner, prefill=(11,), decode=4)
    assert caught.value.code is errors.NOT_VERIFIED
    assert "past_conv.1 departs first" in str(caught.value)
    assert ("prefill", 1, 11) not in runner.calls
    assert not (bundle.path / "reports").exists()


def test_a_report_of_a_passing_verify_is_believed_for_the_same_files_only(bundle):
    options = {"prefill": (5,), "decode": 0, "warmup": 0, "repetitions": 1}
    verify(bundle, runner=PlainRunner(bundle))
    runner = Counting(bundle)
    bench(bundle, runner=runner, **options)
    assert runner.calls == [("prefill", 1, 5)]
    bench(bundle, runner=runner, force_verify=True, **options)
    assert len(runner.calls) > 50

    path = bundle.path / "reports/verify.json"
    saved = json.loads(path.read_text())
    saved["files"]["onnx/weights.data"] = "0" * 64
    path.write_text(json.dumps(saved))
    runner = Counting(bundle)
    bench(bundle, runner=runner, **options)
    assert len(runner.calls) > 50


def test_the_report_is_saved_beside_what_it_depends_on(bundle):
    report = bench(bundle, runner=PlainRunner(bundle), threads=2, **QUICK)
    saved = json.loads((bundle.path / "reports/bench-plain.json").read_text())
    assert {"bundle": str(bundle.path), **saved} == json.loads(json.dumps(report.as_json()))
    columns = {"phase", "tokens", "batch", "runner", "p50_ms", "p90_ms", "p99_ms", "tokens_per_s"}
    assert columns <= saved["rows"][0].keys()
    assert (saved["warmup"], saved["repetitions"], saved["threads"]) == (1, 3, 2)
    assert saved["verified"] == ["logits", "states", "prefill equals steps"]
    assert saved["machine"]
    assert saved["runtime"]["onnxruntime"]


@pytest.mark.parametrize(
    "options", [{"prefill": (0,)}, {"batch": ()}, {"decode": -1}, {"repetitions": 0}]
)
def test_numbers_that_make_no_sense_are_refused(bundle, options):
    with pytest.raises(SsmExportError) as caught:
        bench(bundle, runner=PlainRunner(bundle), **options)
    assert caught.value.code is errors.BAD_OPTION


def test_percentiles_of_known_times():
    assert percentiles([float(n) for n in range(1, 102)]) == pytest.approx((51.0, 91.0, 100.0))


def test_timed_is_in_milliseconds():
    assert 20 <= timed(lambda: time.sleep(0.02)) < 500


def test_the_peak_of_memory_sees_what_was_freed():
    peak = MemoryPeak()
    before = peak.bytes()
    if before is None:
        pytest.skip("this system does not say")
    block = np.ones(40_000_000)
    del block
    assert peak.bytes() - before > 200_000_000
