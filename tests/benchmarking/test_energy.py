"""Energy by row, of a device whose power is known, on a clock that runs as the calls say."""

from __future__ import annotations

import types

import numpy as np
import pytest
from toy_bundle import PlainRunner, make_toy_bundle

from ssm_export.benchmarking import bench, energy, timing, work
from ssm_export.benchmarking.screen import facts, reading
from ssm_export.telemetry import recorder
from ssm_export.telemetry.reading import Reading
from ssm_export.telemetry.sources import INTERVAL_MS, Facts
from ssm_export.verification import verify
from ssm_export.verification.opening import OneForm

IDLE_W = 80.0
POWERS_W = {1: 600.0, 3: 200.0}
"""Of the device while it works on a batch of so many rows."""
STEP_S = 0.004
PREFILL_S = 0.031
OPTIONS = {"prefill": (16,), "decode": 8, "batch": (1, 3), "save": False}


class Clock:
    """A clock that only sleeping and working move, and the power at each time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ends = [0.0]
        self.powers = [IDLE_W]

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float, power: float = IDLE_W) -> None:
        self.now += seconds
        self.ends.append(self.now)
        self.powers.append(power)

    def mean(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The mean power between times, of the energy that was used up to each."""
        used = np.cumsum(np.diff(self.ends, prepend=0.0) * np.array(self.powers))
        joules = np.interp(end, self.ends, used) - np.interp(begin, self.ends, used)
        return joules / (end - begin)


class Played:
    """A source that samples the clock's power: of the moment, or the mean of ``average_s``."""

    name = "played"
    power_reading = "power"
    trouble = ""

    def __init__(self, clock: Clock, average_s: float, every_s: float = INTERVAL_MS / 1e3) -> None:
        self.clock, self.average_s, self.every_s = clock, average_s, every_s

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def count(self) -> int:
        return int(self.clock.now / self.every_s)

    def alive(self) -> bool:
        return True

    def readings(self) -> list[tuple[float, Reading]]:
        times = np.arange(0.013, self.clock.now, self.every_s)
        powers = self.clock.mean(np.maximum(times - (self.average_s or 1e-3), 0.0), times)
        return [
            (float(at), Reading(rails_w={"board": float(power)}))
            for at, power in zip(times, powers, strict=True)
        ]

    def power_rails(self, rails_w: dict[str, float]) -> tuple[str, ...]:
        return ("board",)

    def facts(self) -> Facts:
        return Facts()


class Powered(PlainRunner):
    """Takes a known time and power for each call."""

    def __init__(self, bundle, clock):
        super().__init__(bundle)
        self.clock = clock
        self.calls = 0

    def run(self, form, feeds):
        found = super().run(form, feeds)
        self.calls += 1
        seconds = STEP_S if form == "step" else PREFILL_S
        self.clock.sleep(seconds, POWERS_W.get(len(feeds["input_ids"]), IDLE_W))
        return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    made = make_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy")
    verify(made, runner=PlainRunner(made))  # which every bench below believes
    return made


@pytest.fixture
def clock(monkeypatch):
    """The time of everything that bench measures with."""
    made = Clock()
    fake = types.SimpleNamespace(perf_counter=made.perf_counter, sleep=made.sleep)
    for module in (work, timing, energy, recorder):
        monkeypatch.setattr(module, "time", fake)
    return made


@pytest.mark.parametrize("average_s", [0.0, 1.0])
def test_each_row_has_the_energy_of_what_it_does(bundle, clock, monkeypatch, average_s):
    """Rows of 600 W and of 200 W: a token takes its share of the power times the time of its call,
    whether the samples are of the moment or the mean of a second."""
    monkeypatch.setattr(recorder, "find_source", lambda device: Played(clock, average_s))
    report = bench(bundle, runner=Powered(bundle, clock), **OPTIONS)
    assert len(report.rows) == 6
    for row in report.rows:
        of_a_call = {
            "prefill": (PREFILL_S, 16),
            "first token": (PREFILL_S + STEP_S, 17),
            "decode": (8 * STEP_S, 8),
        }
        seconds, tokens = of_a_call[row.phase]
        true = POWERS_W[row.batch] * seconds * 1e3 / (tokens * row.batch)
        assert row.energy_mj_per_token == pytest.approx(true, rel=0.03)
    assert report.telemetry["average_s"] == average_s
    assert report.notes == ()
    (said,) = [line for line in facts(report) if line.startswith("power figure")]
    assert ("mean of 1 s" in said) is (average_s > 0)


def test_nothing_runs_longer_where_no_power_is_sampled(bundle, clock, monkeypatch):
    options = {**OPTIONS, "repetitions": 5, "warmup": 0}
    calls = {}
    sources = {"without": "no counters", "with": Played(clock, 0.0)}
    for name, source in sources.items():
        monkeypatch.setattr(recorder, "find_source", lambda device, source=source: source)
        runner = Powered(bundle, clock)
        report = bench(bundle, runner=runner, **options)
        calls[name] = runner.calls
        known = [row.energy_mj_per_token is not None for row in report.rows]
        assert known == [name == "with"] * 6
    # Of each batch, five times a prefill with a step, and five times eight steps.
    assert calls["without"] == 2 * 5 * (2 + 8)
    assert calls["with"] > 2 * calls["without"]


def test_a_row_runs_alone_as_often_as_was_asked(bundle, clock, monkeypatch):
    monkeypatch.setattr(recorder, "find_source", lambda device: Played(clock, 0.0))
    began = clock.now
    options = {"prefill": (16,), "decode": 0, "repetitions": 200, "save": False}
    bench(bundle, runner=Powered(bundle, clock), **options)
    assert clock.now - began > 2 * 200 * PREFILL_S


def test_too_few_samples_leave_the_energy_empty_and_say_so(bundle, clock, monkeypatch):
    monkeypatch.setattr(recorder, "find_source", lambda device: Played(clock, 0.0, every_s=0.9))
    options = {**OPTIONS, "batch": (1,)}
    report = bench(bundle, runner=Powered(bundle, clock), **options)
    assert [row.energy_mj_per_token for row in report.rows] == [None] * 3
    (said,) = [line for line in reading(report) if line.startswith("No energy where")]
    for part in ("prefill 16 tokens, batch 1 (", "first token 16 tokens", "decode 8 tokens"):
        assert part in said
    assert "in 2.5 s)" in said


def test_with_one_graph_at_a_time_a_row_is_followed_by_its_energy(bundle, clock, monkeypatch):
    """So that no graph is loaded once more for it: two batches of prefill and decode, four loads
    after the first graph's."""
    monkeypatch.setattr(recorder, "find_source", lambda device: Played(clock, 1.0))
    opened = []

    def load():
        opened.append(Powered(bundle, clock))
        return opened[-1]

    report = bench(bundle, runner=OneForm(load), **OPTIONS)
    assert [row.phase for row in report.rows] == ["prefill", "decode"] * 2
    for row in report.rows:
        of_a_token = STEP_S if row.phase == "decode" else PREFILL_S / 16
        true = POWERS_W[row.batch] * of_a_token * 1e3 / row.batch
        assert row.energy_mj_per_token == pytest.approx(true, rel=0.03)
    assert len(opened) == 4
