"""The commands of the two samples' READMEs are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ssm_export.cli import command_of
from ssm_export.targets import get_target

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def commands(sample: str) -> list[list[str]]:
    text = (SAMPLES / sample / "README.md").read_text(encoding="utf-8")
    return [shlex.split(line) for line in re.findall(r"^ssm-export (.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize(("sample", "count"), [("package", 3), ("triton", 2)])
def test_the_command_line_takes_them(sample, count):
    found = commands(sample)
    assert len(found) == count
    for verb, *words in found:
        parameters = command_of(verb).make_context(verb, words).params
        if parameters.get("target"):
            get_target(parameters["target"])
        for name in ("checkpoint", "bundle"):
            if verb == "export" and name in parameters:
                assert (SAMPLES.parent / parameters[name]).is_dir()


def test_run_shs_words_are_the_readmes():
    """Options and variables that it names are those of the script, and the other way round."""
    text = (SAMPLES / "package/README.md").read_text(encoding="utf-8")
    script = (SAMPLES.parent / "ssm_export/packaging/board/run.sh").read_text(encoding="utf-8")
    for option in re.findall(r"^    (--\w+)\)", script, re.MULTILINE):
        assert f"run.sh {option}" in text
    for variable in ("PYTHON", "SSM_EXPORT_BENCH"):
        assert f"{variable}=" in text
        assert f"${{{variable}:-" in script


@pytest.mark.slow
def test_the_samples_commands_run(tmp_path, monkeypatch):
    """Every one that needs no board and no server, in an empty folder."""
    from ssm_export.cli import group
    from ssm_export.cli.running import run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples").symlink_to(SAMPLES)
    for sample in ("package", "triton"):
        for words in commands(sample):
            if words[0] == "export":
                words += ["--parity", "quick"]
            if words[:1] == ["package"] and "--target" in words:
                words += ["--lowering", "native"]  # compiling kernels is tested elsewhere
            assert run(group, words) == 0, words
    repository = tmp_path / "build/triton/repository"
    assert (repository / "models/mamba2/config.pbtxt").is_file()
    assert (repository / "tensorrt-without-engine/build.sh").is_file()
