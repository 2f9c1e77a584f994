"""Bench gives speed only for a bundle that passes, and says what the speed depends on."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from toy_bundle import D, Fault, K, L, N, PlainRunner, Truth, make_toy_bundle, make_weights

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
        ("first token", 5, 1),
        ("prefill", 16, 1),
        ("first token", 16, 1),
        ("decode", 4, 1),
        ("prefill", 5, 3),
        ("first token", 5, 3),
        ("prefill", 16, 3),
        ("first token", 16, 3),
        ("decode", 4, 3),
    ]
    for row in report.rows:
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms <= row.max_ms
        assert row.p50_low_ms <= row.p50_ms <= row.p50_high_ms
        assert len(row.quantiles_ms) == 41
        assert (row.quantiles_ms[20], row.quantiles_ms[40]) == (row.p50_ms, row.max_ms)
        per_call = {"prefill": row.tokens, "first token": row.tokens + 1, "decode": 1}[row.phase]
        assert row.tokens_per_s == pytest.approx(row.batch * per_call / row.p50_ms * 1e3)


def test_warm_up_is_run_and_not_timed(bundle):
    runner = Counting(bundle)
    report = bench(bundle, runner=runner, prefill=(7,), decode=4, warmup=2, repetitions=3)
    prefill, first, decode = report.rows
    assert (prefill.samples, first.samples, decode.samples) == (3, 3, 3 * 4)
    # Three blocks of one repetition: two warm-up calls before the first, one before each other.
    prefills = 3 + 2 + 1 + 1
    assert runner.calls.count(("prefill", 1, 7)) == prefills
    blocks = "".join("p" if call == ("prefill", 1, 7) else "s" for call in runner.calls[-42:])
    steps = 2 + 4
    assert blocks.endswith("psps" + "s" * steps + "psps" + "s" * steps)


def test_a_first_token_is_a_prefill_and_a_step(bundle):
    report = bench(bundle, runner=Counting(bundle), prefill=(7,), decode=4, repetitions=5)
    prefill, first, decode = report.rows
    assert decode.p50_ms >= 2.0
    assert first.p50_ms >= prefill.p50_ms + 2.0
    for one, two in zip(prefill.quantiles_ms, first.quantiles_ms, strict=True):
        assert two >= one + 2.0


def test_short_calls_are_repeated_more_often_when_no_number_is_asked_for(bundle):
    report = bench(bundle, runner=PlainRunner(bundle), prefill=(5,), decode=4, save=False)
    assert report.repetitions == 10
    assert all(row.samples >= 10 for row in report.rows)
    assert report.rows[-1].samples > 10 * 4
    assert report.blocks == 5


class Fed(PlainRunner):
    """Notes the states that each step was fed."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.steps = []

    def run(self, form, feeds):
        if form == "step":
            self.steps.append({name: value.copy() for name, value in feeds.items()})
        return super().run(form, feeds)


def test_decode_at_a_depth_begins_with_the_state_of_that_many_tokens(bundle):
    """The state is the one that the truth has after the same tokens, one by one."""
    runner = Fed(bundle)
    options = {"prefill": (), "decode": 2, "warmup": 0, "repetitions": 1}
    report = bench(bundle, runner=runner, depth=(0, 37), force_verify=False, **options)
    assert [(row.phase, row.depth) for row in report.rows] == [("decode", 0), ("decode", 37)]
    at_none, _, at_depth, _ = runner.steps[-4:]
    assert all(not at_none[f"past_ssm.{i}"].any() for i in range(L))
    ids = np.random.default_rng(0).integers(0, 40, (1, 37))
    truth = Truth(make_weights())
    states = truth.start(1)
    for column in ids.T:
        truth.token(column, states)
    for name, value in states.items():
        np.testing.assert_allclose(at_depth[name], value, rtol=1e-4, atol=1e-5)


class WithGraphs(PlainRunner):
    """Has CUDA graphs to switch, as a runner on a GPU does, and notes the switch at each step."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.cuda_graph = True
        self.seen = []

    def run(self, form, feeds):
        self.seen.append((form, self.cuda_graph))
        return super().run(form, feeds)


def test_cuda_graphs_on_and_off(bundle):
    runner = WithGraphs(bundle)
    options = {"prefill": (5,), "decode": 3, "warmup": 0, "repetitions": 2}
    report = bench(bundle, runner=runner, cuda_graph="both", **options)
    assert [(row.phase, row.cuda_graph) for row in report.rows] == [
        ("prefill", None),
        ("first token", True),
        ("decode", True),
        ("decode", False),
    ]
    assert {graph for form, graph in runner.seen if form == "prefill"} == {True}
    steps = [graph for form, graph in runner.seen if form == "step"]
    without = next(row for row in report.rows if row.cuda_graph is False)
    assert steps.count(False) == without.samples
    assert runner.cuda_graph is True


def test_a_runner_without_cuda_graphs_refuses_them(bundle):
    with pytest.raises(SsmExportError, match="no CUDA graphs") as caught:
        bench(bundle, runner=PlainRunner(bundle), cuda_graph="on", **QUICK)
    assert caught.value.code is errors.BAD_OPTION
    report = bench(bundle, runner=PlainRunner(bundle), **QUICK)
    assert {row.cuda_graph for row in report.rows} == {None}


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
    assert (saved["blocks"], saved["repeatability"]) == (3, {"p50_spread": None, "steady": False})
    assert saved["telemetry"]["throttled"] == []
    assert saved["runtime"]["onnxruntime"]


@pytest.mark.parametrize(
    "options",
    [{"prefill": (0,)}, {"batch": ()}, {"decode": -1}, {"repetitions": 0}, {"depth": (-1,)}],
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
