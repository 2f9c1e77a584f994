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
