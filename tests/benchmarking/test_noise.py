"""What a bench says of its own noise, against runs whose distribution is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import PlainRunner, make_toy_bundle

from ssm_export.benchmarking import Row, bench
from ssm_export.benchmarking.timing import block_spread, median_interval, quantiles


def run_of(rng, drift, blocks=5, calls=40):
    """Blocks of a machine whose speed differs from block to block by ``drift``."""
    levels = 10 * (1 + drift * rng.standard_normal(blocks))
    return [list(level * (1 + 0.01 * rng.gamma(2, 1, calls))) for level in levels]


@pytest.mark.parametrize("drift", [0.0, 0.01, 0.05])
def test_the_interval_holds_the_true_median_about_as_often_as_it_says(drift):
    rng = np.random.default_rng(1)
    true = 10 * (1 + 0.01 * float(np.median(rng.gamma(2, 1, 1_000_000))))
    inside = 0
    for _ in range(200):
        low, high = median_interval(run_of(rng, drift))
        inside += low <= true <= high
    assert inside / 200 > 0.85


def test_the_interval_is_this_run_s_and_not_where_another_run_lies():
    """Of the true median it holds what it says; of the p50 of another run less than that."""
    rng = np.random.default_rng(3)
    true = 10 * (1 + 0.01 * float(np.median(rng.gamma(2, 1, 1_000_000))))
    runs = [run_of(rng, 0.02) for _ in range(1000)]
    intervals = [median_interval(run) for run in runs]
    medians = [float(np.median(np.concatenate(run))) for run in runs]
    holds = np.mean([low <= true <= high for low, high in intervals])
    another = np.mean(
        [low <= p50 <= high for (low, high), p50 in zip(intervals, medians[1:], strict=False)]
    )
    assert 0.92 < holds < 0.98
    assert another < 0.9
    readme = Path(__file__).parents[2] / "samples" / "latency" / "README.md"
    for text in (readme.read_text(encoding="utf-8"), Row.__doc__, median_interval.__doc__):
        assert "95 % confidence interval of this run" in text


def test_drift_widens_the_interval():
    rng = np.random.default_rng(2)
    low, high = median_interval(run_of(rng, 0.001))
    steady = high - low
    low, high = median_interval(run_of(rng, 0.1))
    assert high - low > 5 * steady


def test_one_block_says_nothing_of_noise():
    assert median_interval([[1.0, 2.0, 9.0]]) == (2.0, 2.0)


def test_the_spread_of_blocks():
    assert block_spread([[1.0, 1.0], [1.0, 1.0]]) == 0.0
    assert block_spread([[9.0, 9.0], [10.0, 10.0], [11.0, 11.0]]) == pytest.approx(0.2)


def test_quantiles_of_known_times():
    assert quantiles([float(n) for n in range(41)]) == pytest.approx(list(range(41)))


@pytest.mark.parametrize(
    ("spread", "steady", "said"), [(0.04, True, "steady:"), (0.2, False, "NOT STEADY")]
)
def test_a_run_that_is_not_steady_says_so(tmp_path, spread, steady, said):
    from ssm_export.documents.tables import render

    bundle = make_toy_bundle(tmp_path / "toy")
    options = {"prefill": (5,), "decode": 0, "repetitions": 5, "save": False}
    report = bench(bundle, runner=PlainRunner(bundle), **options)
    rows = tuple(dataclasses.replace(row, p50_spread=spread) for row in report.rows)
    made = dataclasses.replace(report, rows=rows)
    assert made.repeatability == {"p50_spread": spread, "steady": steady}
    assert said in render(made.table(), 110)
    few = dataclasses.replace(made, blocks=2)
    assert few.repeatability == {"p50_spread": None, "steady": False}
