"""Drift: of models whose errors are known, and of steps that would take too long."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from ssm_export.bundle import StateSpec
from ssm_export.quantization import drift
from ssm_export.quantization.drift import DriftNotRun, DriftPoint, measure_drift, state_drift

N = 8
STATES = (
    StateSpec("past_conv.0", "present_conv.0", "conv", 0, ("batch", 1), "float32", "B,K-1"),
    StateSpec("past_ssm.0", "present_ssm.0", "ssm", 0, ("batch", N), "float32", "B,N"),
)


@dataclass
class Manifest:
    states: tuple[StateSpec, ...] = STATES
    ragged: bool = False
    logits: str = "last"


@dataclass
class FakeBundle:
    manifest: Manifest


class Recurrence:
    """h' = decay·h + (1 − decay)·x·(1 + off)·[1 … N], in float64 with the state stored as float32.

    Closed over tokens in numpy; the step graph is off by ``off``, the prefill graph is exact.
    """

    def __init__(self, off: float = 0.0, decay: float = 0.999) -> None:
        self.off, self.decay = off, decay
        self.calls: list[tuple[str, int]] = []
        self.info = None

    def run(self, form, feeds):
        ids = feeds["input_ids"]
        self.calls.append((form, ids.shape[1]))
        state = feeds["past_ssm.0"].astype(np.float64)
        off = self.off if form == "step" else 0.0
        for column in ids.T:
            drive = column[:, None] * (1 + off) * np.arange(1, N + 1)
            state = self.decay * state + (1 - self.decay) * drive
        logits = state[:, None, :3].astype(np.float32)
        present = {"present_conv.0": ids[:, -1:] * np.float32(100), "present_ssm.0": state}
        return {"logits": logits, **{k: v.astype(np.float32) for k, v in present.items()}}

    def close(self):
        return None


def model(off: float = 0.0, decay: float = 0.999):
    from ssm_export.engines.runner import Recurrent

    return Recurrent(FakeBundle(Manifest()), Recurrence(off, decay))


def tokens(count: int, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 9, (rows, count))


def test_an_error_of_one_percent_is_one_percent():
    points = measure_drift(model(0.01), model(), tokens(3000), (1500, 40, 3000))
    assert [point.steps for point in points] == [40, 1500, 3000]
    for point in points:
        assert isinstance(point, DriftPoint)
        assert point.state == "past_ssm.0"
        assert point.state_error == pytest.approx(0.01, rel=1e-4)
        assert point.logits_error == pytest.approx(0.01, rel=1e-4)
    assert points[0].seconds < points[1].seconds < points[2].seconds


def test_the_model_steps_and_the_reference_reads_in_pieces_each_token_once():
    tested, reference = model(), model()
    points = measure_drift(tested, reference, tokens(2500), (100, 2500))
    assert set(tested.runner.calls) == {("step", 1)}
    assert len(tested.runner.calls) == 2500
    assert {form for form, _ in reference.runner.calls} == {"prefill"}
    assert sum(count for _, count in reference.runner.calls) == 2500
    assert all(point.state_error < 1e-5 for point in points)


def test_one_row_may_be_given_flat_and_what_is_not_finite_is_infinitely_far():
    (point,) = measure_drift(model(math.nan), model(), tokens(40, 1)[0], (40,))
    assert point.state_error == point.logits_error == math.inf


def test_too_few_tokens_and_too_little_time_are_said(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(drift.time, "perf_counter", lambda: float(next(ticks)))
    tested = model()
    points = measure_drift(
        tested, model(), tokens(1000), (64, 900, 5000), limit_seconds=20, progress=drift.SILENT
    )
    assert isinstance(points[0], DriftPoint)
    assert isinstance(points[1], DriftNotRun)
    assert "limit is 20 s" in points[1].reason
    assert points[2] == DriftNotRun(5000, "there are 1000 tokens")
    assert len(tested.runner.calls) == 64


def test_a_first_point_that_takes_too_long_stops_after_a_trial(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(drift.time, "perf_counter", lambda: 60.0 * next(ticks))
    tested = model()
    (point,) = measure_drift(tested, model(), tokens(4096), (4096,), limit_seconds=600)
    assert isinstance(point, DriftNotRun)
    assert 0 < len(tested.runner.calls) < 100


def test_a_state_type_costs_what_its_format_says():
    """After one step from zero the only error is one rounding: of fp16 at most 2⁻¹¹, of int8 the
    largest of N entries is exact and others are off by less than a step of 1/127 of it."""
    found = state_drift(model(decay=0.7), tokens(1), steps=(1,))
    assert list(found) == ["fp16", "int8"]
    (half,), (codes,) = found["fp16"], found["int8"]
    assert 0 < half.state_error <= 2**-11
    worst = math.sqrt(N - 1) * N / 127 / math.sqrt(sum(i * i for i in range(1, N + 1)))
    assert half.state_error < codes.state_error < worst
