"""A bench against a baseline: what is slower, what noise explains, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
from toy_bundle import PlainRunner, make_toy_bundle

from ssm_export import errors
from ssm_export.benchmarking import bench
from ssm_export.benchmarking.comparison import read_baseline, slower_error
from ssm_export.errors import SsmExportError
from ssm_export.verification import verify

OPTIONS = {"prefill": (5,), "decode": 4, "warmup": 0, "repetitions": 5}


class Timed(PlainRunner):
    """Takes a given time for each call, whatever the machine does."""

    def __init__(self, bundle, seconds):
        super().__init__(bundle)
        self.seconds = seconds

    def run(self, form, feeds):
        end = time.perf_counter() + self.seconds
        found = super().run(form, feeds)
        while time.perf_counter() < end:
            time.sleep(0.0005)
        return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    made = make_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy")
    verify(made, runner=PlainRunner(made))  # which every bench below believes
    return made


@pytest.fixture(scope="module")
def baseline(bundle, tmp_path_factory):
    """A baseline file of calls that take 20 ms, and its report."""
    file = tmp_path_factory.mktemp("baselines") / "baseline.json"
    report = bench(bundle, runner=Timed(bundle, 0.02), outputs=[file], save=False, **OPTIONS)
    return file, report


def altered(baseline, tmp_path, **members):
    document = json.loads(baseline[0].read_text())
    file = tmp_path / "altered.json"
    file.write_text(json.dumps({**document, **members}))
    return file


def test_a_slower_run_fails_and_names_the_worst_row(bundle, baseline):
    file, _ = baseline
    slow = bench(bundle, runner=Timed(bundle, 0.06), baseline=file, save=False, **OPTIONS)
    assert not slow.ok
    assert slow.as_json()["ok"] is False
    verdicts = {change.verdict for change in slow.comparison.changes}
    assert verdicts == {"slower"}
    error = slower_error(slow.comparison, "toy")
    assert error.code is errors.SLOWER
    assert "3 of 3 rows" in str(error)


def test_a_faster_run_passes(bundle, baseline):
    file, _ = baseline
    fast = bench(bundle, runner=PlainRunner(bundle), baseline=file, save=False, **OPTIONS)
    assert fast.ok
    assert all(change.change < 0 for change in fast.comparison.changes)


def rows_at(report, factor, noise):
    """Rows whose p50 is ``factor`` times the report's, known to ± ``noise``."""
    made = []
    for row in report.rows:
        p50 = row.p50_ms * factor
        low, high = p50 * (1 - noise), p50 * (1 + noise)
        made.append(dataclasses.replace(row, p50_ms=p50, p50_low_ms=low, p50_high_ms=high))
    return made


@pytest.mark.parametrize(
    ("factor", "noise", "verdict"),
    [
        (1.0, 0.0, "same"),
        (1.02, 0.0, "same"),
        (1.05, 0.0, "slower"),
        (1.05, 0.045, "same"),
        (1.10, 0.04, "slower"),
        (0.98, 0.0, "same"),
        (0.90, 0.04, "faster"),
    ],
)
def test_noise_of_both_runs_is_no_change(baseline, tmp_path, factor, noise, verdict):
    """The baseline is made to be known to ± 1 %; changes below 3 % are none in any case."""
    rows = [dataclasses.asdict(row) for row in rows_at(baseline[1], 1.0, 0.01)]
    found = read_baseline(altered(baseline, tmp_path, rows=rows))
    compared = found.compare(rows_at(baseline[1], factor, noise), {}, {})
    assert {change.verdict for change in compared.changes} == {verdict}
    assert compared.changes[0].noise == pytest.approx(max(0.03, 0.01 + noise))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"runner": "tensorrt"}, "runner was tensorrt, is plain"),
        ({"device": "NVIDIA H100"}, "device was NVIDIA H100, is cpu"),
        ({"weights_sha256": "0" * 64}, "weights of the bundle are others"),
        ({"repetitions": 50}, "--repetitions was 50, is 5"),
        ({"threads": 8}, "--threads was 8, is not set"),
        ({"machine": {"cpu": "Another", "cores": 128}}, "machine: cpu was Another"),
        ({"rows": "others"}, "no row of it"),
        ({"runner": "tensorrt", "threads": 8}, "--threads was 8"),
    ],
)
def test_what_measured_something_else_is_refused_before_anything_runs(
    bundle, baseline, tmp_path, members, said
):
    if members.get("rows") == "others":
        others = [dataclasses.asdict(row) | {"batch": 7} for row in baseline[1].rows]
        members = {"rows": others}
    runner = PlainRunner(bundle)
    runner.run = None
    with pytest.raises(SsmExportError) as caught:
        bench(bundle, runner=runner, baseline=altered(baseline, tmp_path, **members), **OPTIONS)
    assert caught.value.code is errors.BAD_BASELINE
    assert said in str(caught.value)


def test_every_difference_is_named(baseline, tmp_path):
    found = read_baseline(altered(baseline, tmp_path, runner="tensorrt", threads=8))
    present = {**baseline[1].as_json(), "machine": {**baseline[1].machine, "cores": 1000}}
    with pytest.raises(SsmExportError) as caught:
        found.check(present, [row.key for row in baseline[1].rows])
    for part in ("runner was tensorrt", "--threads was 8", "machine: cores was"):
        assert part in str(caught.value)


def test_another_version_is_allowed_and_said(bundle, baseline, tmp_path):
    runtime = {**json.loads(baseline[0].read_text())["runtime"], "onnxruntime": "1.20.0"}
    file = altered(baseline, tmp_path, runtime=runtime)
    report = bench(bundle, runner=PlainRunner(bundle), baseline=file, save=False, **OPTIONS)
    (said,) = report.comparison.versions
    assert said.startswith("onnxruntime was 1.20.0, is ")


def test_a_newer_driver_is_another_version_and_another_card_another_machine(baseline, tmp_path):
    card = "NVIDIA L4 (compute capability 8.9, 24 GB, CUDA {})"
    machine = {**baseline[1].machine, "gpu": card.format("12.6")}
    found = read_baseline(altered(baseline, tmp_path, machine=machine))
    keys = [row.key for row in baseline[1].rows]
    now = {**machine, "gpu": card.format("13.0")}
    found.check({**baseline[1].as_json(), "machine": now}, keys)
    (said,) = found.compare(baseline[1].rows, baseline[1].versions, now).versions
    assert said.startswith("gpu was NVIDIA L4")
    now = {**machine, "gpu": card.format("12.6").replace("L4", "L40")}
    with pytest.raises(SsmExportError, match="gpu was NVIDIA L4, is NVIDIA L40"):
        found.check({**baseline[1].as_json(), "machine": now}, keys)


def test_rows_of_one_of_the_two_are_counted(bundle, baseline):
    file, _ = baseline
    options = {**OPTIONS, "prefill": (5, 9)}
    report = bench(bundle, runner=PlainRunner(bundle), baseline=file, save=False, **options)
    assert (len(report.comparison.changes), report.comparison.not_compared) == (3, 2)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "not json", '{"rows": [], "machine": {}}', '{"rows": [1], "machine": {}}'],
)
def test_what_is_no_report_is_refused(tmp_path, content):
    file = tmp_path / "baseline.json"
    file.write_text(content)
    with pytest.raises(SsmExportError) as caught:
        read_baseline(file)
    assert caught.value.code is errors.BAD_BASELINE
    assert "make another" in str(caught.value)


def test_a_report_of_an_older_release_is_refused(baseline, tmp_path):
    rows = [{"phase": "decode", "tokens": 64, "batch": 1, "p50_ms": 1.0}]
    with pytest.raises(SsmExportError) as caught:
        read_baseline(altered(baseline, tmp_path, rows=rows))
    assert caught.value.code is errors.BAD_BASELINE


def test_too_few_blocks_know_no_noise(bundle, baseline, tmp_path):
    with pytest.raises(SsmExportError) as caught:
        bench(bundle, runner=PlainRunner(bundle), baseline=baseline[0], repetitions=3)
    assert caught.value.code is errors.BAD_OPTION
    few = {"p50_spread": None, "steady": False}
    with pytest.raises(SsmExportError) as caught:
        read_baseline(altered(baseline, tmp_path, repeatability=few))
    assert caught.value.code is errors.BAD_BASELINE


def test_a_missing_baseline(tmp_path):
    with pytest.raises(SsmExportError) as caught:
        read_baseline(tmp_path / "nowhere.json")
    assert caught.value.code is errors.NO_SUCH_PATH


def test_a_slower_run_does_not_become_the_baseline(bundle, tmp_path):
    file = bundle.path / "reports" / "bench-plain.json"
    bench(bundle, runner=Timed(bundle, 0.02), **OPTIONS)
    before = file.read_text()
    slow = bench(bundle, runner=Timed(bundle, 0.06), baseline=file, outputs=[file], **OPTIONS)
    assert not slow.ok
    assert file.read_text() == before
    fast = bench(bundle, runner=PlainRunner(bundle), baseline=file, **OPTIONS)
    assert fast.ok
    assert file.read_text() != before
