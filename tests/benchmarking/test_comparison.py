"""A bench against a baseline: what is slower, what noise explains, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
from toy_bundle import PlainRunner, make_toy_bundle

from ssm_export import errors
from ssm_export.benchmarking import bench
from ssm_export.benchmarking.baseline import read_baseline
from ssm_export.benchmarking.comparison import cannot_tell, slower_error
from ssm_export.benchmarking.screen import reading, verdicts
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
        (1.04, 0.0, "same"),
        (1.06, 0.0, "slower"),
        (1.06, 0.055, "same"),
        (1.10, 0.04, "slower"),
        (0.96, 0.0, "same"),
        (0.90, 0.04, "faster"),
        (1.09, 0.089, "same"),
        (1.00, 0.1, "cannot tell"),
        (1.207, 0.516, "cannot tell"),
        (0.80, 0.3, "cannot tell"),
        (1.40, 0.3, "slower"),
        (0.60, 0.3, "faster"),
    ],
)
def test_noise_of_both_runs_is_no_change(baseline, tmp_path, factor, noise, verdict):
    """The baseline is made to be known to ± 1 %; changes below 5 % are none in any case, and over
    10 % of noise a change inside it is not called none."""
    rows = [dataclasses.asdict(row) for row in rows_at(baseline[1], 1.0, 0.01)]
    found = read_baseline(altered(baseline, tmp_path, rows=rows))
    compared = found.compare(rows_at(baseline[1], factor, noise), {}, {})
    assert {change.verdict for change in compared.changes} == {verdict}
    assert compared.changes[0].noise == pytest.approx(max(0.05, 0.01 + noise))


def compared_at(bundle, baseline, tmp_path, factor, noise):
    """A report of the baseline's rows at ``factor``, with the comparison and its notes."""
    rows = [dataclasses.asdict(row) for row in rows_at(baseline[1], 1.0, 0.01)]
    found = read_baseline(altered(baseline, tmp_path, rows=rows))
    comparison = found.compare(rows_at(baseline[1], factor, noise), {}, {})
    notes = cannot_tell(comparison)
    return dataclasses.replace(baseline[1], comparison=comparison, notes=notes)


def test_a_noisy_run_passes_but_not_silently(bundle, baseline, tmp_path):
    report = compared_at(bundle, baseline, tmp_path, 1.05, 0.3)
    assert report.ok
    (said,) = [line for line in reading(report) if line.startswith("CANNOT TELL")]
    for part in ("3 of 3 rows", "up to 31.0%", "idle machine", "--repetitions"):
        assert part in said
    assert verdicts(report.comparison)[0].startswith("cannot tell: prefill 5 tokens")
    document = report.as_json()["comparison"]
    assert (document["slower"], document["cannot_tell"], document["not_ruled_out"]) == (0, 3, 0)


def test_a_regression_that_noise_cannot_rule_out_fails(bundle, baseline, tmp_path):
    """The audit's: 0.676 → 0.816 ms, +20.7 %, where the noise is 52.6 %."""
    report = compared_at(bundle, baseline, tmp_path, 0.816 / 0.676, 0.516)
    assert not report.ok
    assert report.as_json()["comparison"]["not_ruled_out"] == 3
    error = slower_error(report.comparison, "toy")
    assert error.code is errors.SLOWER
    for part in ("3 of 3 rows", "could not be ruled out", "+20.7% (noise 52.6%)"):
        assert part in error.what
    assert "by more than the noise" not in error.what
    assert "--repetitions" in error.fix


def test_a_run_of_little_noise_has_nothing_open(bundle, baseline, tmp_path):
    report = compared_at(bundle, baseline, tmp_path, 1.03, 0.01)
    assert report.ok
    assert report.notes == ()
    assert cannot_tell(None) == ()


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
    [
        *(
            "",
            "[]",
            "{}",
            "not json",
            '{"rows": [], "machine": {}}',
            '{"rows": [1], "machine": {}}',
        ),
        pytest.param("[" * 200_000, id="brackets without end"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content):
    file = tmp_path / "baseline.json"
    file.write_text(content)
    with pytest.raises(SsmExportError) as caught:
        read_baseline(file)
    assert caught.value.code is errors.BAD_BASELINE
    assert "make another" in str(caught.value)


INFINITY = float("inf")


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("p50_ms", INFINITY),
        ("p50_ms", float("nan")),
        ("p50_ms", 10**400),
        ("p50_ms", 0.0),
        ("p50_ms", "1.0"),
        ("p50_ms", True),
        ("p50_low_ms", -INFINITY),
        ("p50_low_ms", 1e9),
        ("p50_high_ms", INFINITY),
        ("p50_high_ms", None),
        ("phase", [1]),
        ("phase", None),
        ("tokens", 4.5),
        ("tokens", {}),
        ("batch", [1]),
        ("depth", "0"),
        ("cuda_graph", [True]),
    ],
)
def test_a_row_of_another_shape_is_refused(baseline, tmp_path, member, value):
    rows = [dataclasses.asdict(row) for row in baseline[1].rows]
    rows[-1][member] = value
    with pytest.raises(SsmExportError) as caught:
        read_baseline(altered(baseline, tmp_path, rows=rows))
    assert caught.value.code is errors.BAD_BASELINE


@pytest.mark.parametrize(
    "members",
    [
        {"repeatability": [1]},
        {"repeatability": {"p50_spread": "small"}},
        {"repeatability": {"p50_spread": INFINITY}},
        {"repeatability": {}},
        {"runtime": [1]},
        {"runtime": "1.20"},
        {"machine": [1]},
        {"rows": [[1]]},
        {"rows": {"phase": "decode"}},
    ],
)
def test_members_of_another_shape_are_refused_before_anything_runs(
    bundle, baseline, tmp_path, members
):
    runner = PlainRunner(bundle)
    runner.run = None
    with pytest.raises(SsmExportError) as caught:
        bench(bundle, runner=runner, baseline=altered(baseline, tmp_path, **members), **OPTIONS)
    assert caught.value.code is errors.BAD_BASELINE


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


@pytest.mark.parametrize(("before_s", "now_s"), [(0.02, 0.06), (0.06, 0.02)])
def test_no_run_becomes_the_baseline(bundle, tmp_path, before_s, now_s):
    """Neither a slower one nor a faster: each may be a little slower than the one before."""
    file = bundle.path / "reports" / "bench-plain.json"
    bench(bundle, runner=Timed(bundle, before_s), **OPTIONS)
    before = file.read_text()
    other = tmp_path / "now.json"
    outputs = [file.parent / ".." / "reports" / file.name, other]
    found = bench(bundle, runner=Timed(bundle, now_s), baseline=file, outputs=outputs, **OPTIONS)
    assert found.ok is (now_s < before_s)
    assert file.read_text() == before
    assert json.loads(other.read_text())["created"] == found.created
    for left in (outputs[0], file):
        assert any(
            note.startswith(f"{left} is the baseline and was left as it was")
            for note in found.notes
        )


def test_a_baseline_under_another_name_is_left_alone_too(bundle, baseline, tmp_path):
    name = tmp_path / "link.json"
    name.symlink_to(baseline[0])
    before = baseline[0].read_text()
    runner = Timed(bundle, 0.02)
    found = bench(
        bundle, runner=runner, baseline=name, outputs=[baseline[0]], save=False, **OPTIONS
    )
    assert name.is_symlink()
    assert baseline[0].read_text() == before
    assert any("was left as it was" in note for note in found.notes)
    assert found.comparison is not None
