"""Help, speed, verbs and options."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import pytest
from command_line import Ended, run_process

from ssm_export.cli import VERBS, command_of

Run = Callable[..., Ended]


def test_help_is_fast() -> None:
    """Under 0.3 s, the interpreter's own start included (the best of five)."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        assert run_process("--help").status == 0
        best = min(best, time.perf_counter() - began)
    assert best < 0.3


HEAVY = """
import sys
from ssm_export.cli import main, VERBS, command_of
for verb in VERBS:
    command_of(verb)
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {"numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "rich", "yaml", "polygraphy"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def test_help_and_every_verbs_module_import_nothing_heavy() -> None:
    done = run_process(code=HEAVY)
    assert done.stderr.strip() == "[]"


def test_help_goes_to_stdout_and_names_every_verb() -> None:
    done = run_process("--help")
    assert done.stderr == ""
    for verb in VERBS:
        assert f"  {verb} " in done.stdout


def test_python_m() -> None:
    code = "import runpy, sys; runpy.run_module('ssm_export', run_name='__main__')"
    assert run_process("--help", code=code).stdout.startswith("Usage: ssm-export")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_options(ssm_export: Run, verb: str) -> None:
    done = ssm_export(verb, "--help")
    assert done.status == 0
    for option in ("--json", "--quiet", "--config", "--set"):
        assert option in done.stdout
    command = command_of(verb)
    assert isinstance(command, click.Command)
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_without_words_help_is_shown(ssm_export: Run) -> None:
    done = ssm_export()
    assert done.status == 2
    assert done.stdout.startswith("Usage: ssm-export")


def test_version(ssm_export: Run) -> None:
    import ssm_export as package

    assert ssm_export("--version").stdout == f"ssm-export {package.__version__}\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["exprt"], "did you mean 'export'?"),
        (["verfy", "x"], "did you mean 'verify'?"),
        (["export", "x", "-o", "y", "--precison", "fp16"], "--precision"),
        (["bench", "x", "--prefil", "3"], "--prefill"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(
    ssm_export: Run, words: list[str], hint: str
) -> None:
    done = ssm_export(*words)
    assert done.status == 2
    assert hint in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["export", "x"],
        ["export"],
        ["list", "planets"],
        ["export", "x", "-o", "y", "--precision", "int3"],
        ["bench", "x", "--prefill", "1,two"],
        ["bench", "x", "--prefill", "0"],
        ["build", "x", "--max-batch", "0"],
        ["generate", "x", "words", "--tokens"],
        ["generate", "x", "words", "--seed", "-1", "--temperature", "1"],
    ],
)
def test_wrong_usage(ssm_export: Run, words: list[str]) -> None:
    done = ssm_export(*words)
    assert done.status == 2
    assert done.last_line.startswith("FAILED  ")
    document = ssm_export(*words, "--json").document
    assert document["ok"] is False
    assert document["error"]["code"] == "SSM-E107"
    known = {f"ssm-export/{verb}@1" for verb in (*VERBS, "usage")}
    assert document["schema"] in known
