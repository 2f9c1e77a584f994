"""The options of bench beyond the plain sweep, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SHORT = ("--prefill", "5", "--decode", "2", "--repetitions", "5")


def test_outputs_are_written_and_compared_with(ssm_export: Run, bundle: Path, tmp_path: Path):
    files = [tmp_path / f"made.{suffix}" for suffix in ("md", "csv", "json")]
    outputs = [word for file in files for word in ("--output", file)]
    words = ("bench", bundle, *SHORT, "--depth", "0,7")
    made = ssm_export(*words, *outputs, "--json")
    assert made.status == 0
    assert [row["depth"] for row in made.document["rows"]] == [0, 0, 0, 7]
    assert all(file.stat().st_size for file in files)
    document = json.loads(files[2].read_text())
    assert document["rows"] == made.document["rows"]
    for row in document["rows"]:
        row.update(p50_ms=1e-6, p50_low_ms=1e-6, p50_high_ms=1e-6)
    files[2].write_text(json.dumps(document))
    slow = ssm_export(*words, "--baseline", files[2], "--json")
    assert (slow.status, slow.document["ok"]) == (1, False)
    assert slow.document["error"]["code"] == "SSM-E707"
    assert slow.document["comparison"]["slower"] == 4
    shown = ssm_export(*words, "--baseline", files[2])
    assert shown.status == 1
    assert "slower: decode 2 tokens, batch 1, at depth 7" in shown.stdout
    assert shown.last_line.startswith("FAILED  ")
    other = ssm_export("bench", bundle, *SHORT, "--threads", "1", "--baseline", files[2])
    assert other.status == 1
    assert other.stderr.startswith("SSM-E708")
    assert "--threads was not set, is 1" in other.stderr


def test_noise_that_hides_a_change_does_not_pass_silently(
    ssm_export: Run, bundle: Path, tmp_path: Path
):
    """Nothing slower: status 0, and the last lines say it. Slower inside the noise: it fails."""
    file = tmp_path / "noisy.json"
    words = ("bench", bundle, *SHORT)
    assert ssm_export(*words, "--output", file).status == 0
    measured = json.loads(file.read_text())["rows"]
    for factor, status in ((100.0, 0), (0.25, 1)):
        document = json.loads(file.read_text())
        for row, one in zip(document["rows"], measured, strict=True):
            p50 = one["p50_ms"] * factor
            row.update(p50_ms=p50, p50_low_ms=-1000 * p50, p50_high_ms=1000 * p50)
        file.write_text(json.dumps(document))
        done = ssm_export(*words, "--baseline", file, "-q")
        assert done.status == status
        said = done.stderr.strip().splitlines()
        if status:
            assert said[0].startswith("SSM-E707")
            assert "could not be ruled out" in done.stderr
        else:
            assert said[-2].startswith("CANNOT TELL whether 3 of 3 rows changed")
            assert said[-1].startswith("PASSED")
    shown = ssm_export(*words, "--baseline", file)
    assert "cannot tell: decode 2 tokens" in shown.stdout
    assert "CANNOT TELL whether" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (["--output", "made.xlsx"], "SSM-E101", 2),
        (["--output", "nowhere/made.md"], "SSM-E103", 2),
        (["--baseline", "nowhere.json"], "SSM-E103", 2),
        (["--depth", "-1"], "SSM-E107", 2),
        (["--depth", "deep"], "SSM-E107", 2),
        (["--cuda-graph", "perhaps"], "SSM-E107", 2),
        (["--cuda-graph", "on"], "SSM-E101", 2),
        (["--repetitions", "0"], "SSM-E107", 2),
        (["--target", "orin-gx"], "SSM-E105", 2),
    ],
)
def test_what_cannot_be_used_is_refused(
    ssm_export: Run, bundle: Path, words: list[str], code: str, status: int
):
    done = ssm_export("bench", bundle, *SHORT, *words, "--json")
    assert (done.status, done.document["error"]["code"]) == (status, code)
