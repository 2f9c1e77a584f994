"""The sample of sessions: the commands of its page, one after the other, and its Python."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssm_export import Bundle, errors
from ssm_export.exporter import ExportOptions, export

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "samples/sessions/README.md").read_text(encoding="utf-8")
SYSTEM = 67
"""Bytes, and so tokens, of the script's system prompt."""
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the bundle that the first command makes, and the repository's samples."""
    folder = tmp_path_factory.mktemp("sample")
    (folder / "samples").symlink_to(ROOT / "samples")
    options = ExportOptions(parity="quick", lowering="ort")
    export(ROOT / "samples/train_demo/mamba-bytes", folder / "build/sessions", options)
    return folder


def run(place: Path, words: list[str]) -> str:
    programs = {"ssm-export": [sys.executable, "-m", "ssm_export"], "python": [sys.executable]}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*programs[words[0]], *words[1:]],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_its_commands_do_what_it_says(place):
    commands = [
        shlex.split(line) for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()
    ]
    assert commands[0][1:3] == ["export", "samples/train_demo/mamba-bytes"]
    _, save, prompted, bare, script = commands
    assert run(place, save) == "import os, sys\n"
    assert run(place, prompted).startswith(" # the path")
    assert len(run(place, bare).strip()) > 10
    first = run(place, script)
    assert first.startswith(f"read {SYSTEM} tokens")
    assert len(re.findall(r"^--- continuation \d$", first, re.MULTILINE)) == 3
    # The length of the text grows, that of the saved state does not.
    sizes = re.findall(r"^--- (\d+) tokens read, (\d+) kB saved$", first, re.MULTILINE)
    assert [int(read) for read, _ in sizes] == [SYSTEM + 9 + 48, SYSTEM + 9 + 48 + 10 + 48]
    assert sizes[0][1] == sizes[1][1]
    again = run(place, script)
    assert again.startswith(f"loaded {SYSTEM} tokens")
    assert again.split("\n", 1)[1] == first.split("\n", 1)[1]


@pytest.mark.slow
def test_its_python_runs(place, monkeypatch):
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    monkeypatch.chdir(place)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["rows"]) == 4 and names["logits"].shape[:2] == (1, 1)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sessions", ROOT / "samples/sessions/sessions.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def side_by_side(toy, tmp_path):
    """Bundles of two models in one folder, with a tokenizer that knows one word."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"[any]": 7}, unk_token="[any]")
    for name in ("one", "another"):
        shutil.copytree(toy().path, tmp_path / name)
        tokenizers.Tokenizer(words).save(str(tmp_path / name / "tokenizer.json"))
        bundle = Bundle.open(tmp_path / name)
        bundle.manifest.family = name
        bundle.save()
    return tmp_path


def test_bundles_side_by_side_keep_states_of_their_own(script, side_by_side, capsys):
    for told in ("read", "loaded"):
        for name in ("one", "another"):
            assert script.main([str(side_by_side / name), "--say", "x", "--tokens", "2"]) == 0
            assert capsys.readouterr().out.startswith(f"{told} 1 tokens")
    made = sorted(path.name for path in side_by_side.glob("*.state"))
    assert made == [
        f"{name}.{use}.state" for name in ("another", "one") for use in ("chat", "read-once")
    ]


def test_its_script_says_what_is_wrong(script, side_by_side, capsys):
    assert script.main([str(side_by_side / "none")]) == errors.NO_SUCH_PATH.exit_status
    assert capsys.readouterr().err.startswith(errors.NO_SUCH_PATH.code)
    assert script.main([str(side_by_side / "one"), "--tokens", "2"]) == 0
    shutil.copy(side_by_side / "one.read-once.state", side_by_side / "another.read-once.state")
    assert script.main([str(side_by_side / "another")]) == errors.STATE_MISMATCH.exit_status
    assert capsys.readouterr().err.startswith(errors.STATE_MISMATCH.code)
