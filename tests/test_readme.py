"""What the README says is so: its table, its commands, its Python."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from readme_table import support_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = (ROOT / "samples" / "demo" / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^ssm-export .*$", re.MULTILINE)


def test_the_support_table_is_the_code_s():
    between = README.split("checked by tests/test_readme.py -->\n")[1].split("\n<!-- end")[0]
    assert between == support_table()


def test_the_demo_runs_the_readme_s_commands():
    assert COMMAND.findall(README) == COMMAND.findall(DEMO)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that looks like the repository's root, for files to be made in."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "samples").symlink_to(ROOT / "samples")
    return folder


def run(workplace: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=workplace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_its_commands_run(workplace):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    commands = COMMAND.findall(README)
    assert [shlex.split(line)[1] for line in commands] == [
        "export",
        "verify",
        "build",
        "bench",
        "generate",
    ]
    for line in commands:
        output = run(workplace, "-m", "ssm_export", *shlex.split(line)[1:])
        assert output.strip()
    assert (workplace / "build" / "demo" / "manifest.json").is_file()
    assert list((workplace / "build" / "demo" / "engines").rglob("*.engine"))


@pytest.mark.slow
def test_its_python_runs(workplace):
    blocks = [after.split("```")[0] for after in README.split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        assert run(workplace, "-c", block).strip()


def test_every_folder_it_names_is_there():
    table = README.split("## Where things are")[1]
    for name in re.findall(r"`((?:ssm_export|configs|samples)[^`]*)`", table):
        assert (ROOT / name).exists(), name
