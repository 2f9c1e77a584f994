"""The sample that compares recipes: its table, its texts, and that it goes on where it was."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ssm_export.quantization.recipe import recipe_names

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "quantize"
README = (SAMPLE / "README.md").read_text(encoding="utf-8")


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_it_knows_every_recipe(tmp_path: Path) -> None:
    code = "import compare; print(*compare.RECIPES)"
    assert sorted(run("-c", code, cwd=SAMPLE).stdout.split()) == recipe_names()


def test_the_texts_share_nothing(tmp_path: Path) -> None:
    script = str(SAMPLE / "compare.py")
    run(script, "--texts-only", "-o", str(tmp_path))
    train, held_out = (tmp_path / name for name in ("train.txt", "held-out.txt"))
    assert train.stat().st_size > 10 * held_out.stat().st_size > 0
    piece = held_out.read_bytes()[2000:2400]
    assert piece not in train.read_bytes()
    train.read_text(encoding="utf-8")


def test_the_commands_of_its_readme_are_commands(tmp_path: Path) -> None:
    """The ones of the script are run below; this one is what the script types."""
    from ssm_export.cli import command_of

    (line,) = re.findall(r"^ssm-export (.*)$", README, re.MULTILINE)
    verb, *words = shlex.split(line)
    context = command_of(verb).make_context(verb, words)
    assert context.params["recipe"] == "w8a16"
    assert Path(context.params["calibration"]).name == "train.txt"


@pytest.mark.slow
def test_the_readme_s_script_runs_and_goes_on(tmp_path: Path) -> None:
    scripts = re.findall(r"^python (samples/quantize/compare.py.*)$", README, re.MULTILINE)
    assert scripts[0] == "samples/quantize/compare.py"
    words = [*shlex.split(scripts[1]), "-o", str(tmp_path), "--sequences", "8", "--tokens", "128"]
    words += ["--no-sensitivity", "--no-verify"]
    first = run(*words)
    (row,) = re.findall(r"^\| `w4a16` \| × (\d\.\d\d) \| ([+-]\d\.\d{4}) \|", first.stdout, re.M)
    assert 0.1 < float(row[0]) < 0.3
    assert abs(float(row[1])) < 0.2
    report = json.loads((tmp_path / "mamba-bytes-w4a16/reports/quantize.json").read_text())
    assert {item["variant"] for item in report["ablation"]} > {"recipe", "without rounding"}
    again = run(*words)
    assert again.stdout == first.stdout
    assert "$ ssm-export" not in again.stderr
