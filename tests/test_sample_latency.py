"""The latency sample: its sweeps, its files, its comparison, and the commands of its README."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from ssm_export.cli import command_of

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "latency"
README = (SAMPLE / "README.md").read_text(encoding="utf-8")
SMALL = {
    "prompt": {"prefill": (2, 9), "decode": 4},
    "depth": {"prefill": (2,), "depth": (0, 33), "decode": 4},
    "batch": {"prefill": (2,), "batch": (1, 3), "decode": 4},
}


@pytest.fixture(scope="module")
def sweep():
    """The script, with sweeps that take no time."""
    spec = importlib.util.spec_from_file_location("sweep", SAMPLE / "sweep.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.SWEEPS = SMALL
    return script


def test_the_script_writes_its_files_and_compares(sweep, bundle_of, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of("mamba2"), bundle)
    words = [str(bundle), "--repetitions", "5"]
    first = tmp_path / "first"
    assert sweep.main([*words, "-o", str(first)]) == 0
    assert {file.name for file in first.iterdir()} == {
        "plot.tsv",
        *(f"{name}.{suffix}" for name in SMALL for suffix in ("md", "csv", "json")),
    }
    with (first / "plot.tsv").open() as lines:
        points = list(csv.DictReader(lines, delimiter="\t"))
    found = [(point["sweep"], point["phase"], int(point["x"])) for point in points]
    assert found == [
        ("prompt", "prefill", 2),
        ("prompt", "prefill", 9),
        ("prompt", "first token", 2),
        ("prompt", "first token", 9),
        ("depth", "decode", 0),
        ("depth", "decode", 33),
        *(
            ("batch", phase, size)
            for phase in ("prefill", "first token", "decode")
            for size in (1, 3)
        ),
    ]
    assert all(float(point["p50_low_ms"]) <= float(point["p50_ms"]) for point in points)
    assert "Decode after 33 tokens takes" in capsys.readouterr().out

    # A baseline that says to have taken no time at all: whatever is measured now is slower.
    file = first / "depth.json"
    document = json.loads(file.read_text())
    for row in document["rows"]:
        for key in ("p50_ms", "p50_low_ms", "p50_high_ms"):
            row[key] = 1e-6
    file.write_text(json.dumps(document))
    again = [*words, "-o", str(tmp_path / "second"), "--baseline", str(first), "--sweeps", "depth"]
    assert sweep.main(again) == 1
    assert "SSM-E707" in capsys.readouterr().err


def test_it_says_what_is_wrong(sweep, tmp_path, capsys):
    assert sweep.main([str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]) == 2
    assert "SSM-E103" in capsys.readouterr().err


def test_the_commands_of_its_readme_are_commands(sweep):
    """Their options are those of the script's sweeps."""
    lines = re.findall(r"^ssm-export (.*)$", README, re.MULTILINE)
    assert len(lines) == 4
    given = []
    for line in lines:
        verb, *words = shlex.split(line)
        context = command_of(verb).make_context(verb, words)
        assert verb == "bench"
        given.append(context.params)
    spec = importlib.util.spec_from_file_location("unchanged", SAMPLE / "sweep.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for params, options in zip(given, script.SWEEPS.values(), strict=False):
        assert {name: params[name] for name in options} == options
    for line in re.findall(r"^python samples/latency/sweep.py (.*)$", README, re.MULTILINE):
        assert shlex.split(line)[0] == "build/demo"
