"""``--config`` and ``--set``: who wins, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Ended

Run = Callable[..., Ended]


@pytest.fixture
def options(ssm_export: Run, checkpoint: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The options that a dry run of export ends up with."""

    def call(*words: str) -> dict[str, Any]:
        output = tmp_path / "bundle"
        done = ssm_export("export", checkpoint, "-o", output, "--dry-run", "--json", *words)
        assert done.status == 0, done.stderr
        chosen: dict[str, Any] = done.document["plan"]["options"]
        return chosen

    return call


def test_the_order_of_precedence(options: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("export:\n  precision: fp16\n  ragged: true\n  state-dtype: fp16\nbench: {}\n")
    config = ("--config", str(file))
    assert options()["precision"] == "fp32"
    from_file = options(*config)
    assert (from_file["precision"], from_file["ragged"]) == ("fp16", True)
    assert from_file["state_dtype"] == "fp16"
    assigned = ("--set", "export.precision=bf16", "--set", "export.verify=false")
    both = options(*assigned, *config)
    assert (both["precision"], both["ragged"], both["verify"]) == ("bf16", True, False)
    typed = options(*config, *assigned, "--precision", "fp32", "--no-ragged")
    assert (typed["precision"], typed["ragged"]) == ("fp32", False)


def test_a_bundles_own_options_can_be_used_again(
    options: Callable[..., dict[str, Any]], bundle: Path
) -> None:
    again = options("--config", str(bundle / "effective_config.yaml"))
    assert (again["lowering"], again["parity"]) == ("native", "quick")


def test_lists(ssm_export: Run, bundle: Path) -> None:
    words = ("bench", bundle, "--set", "bench.prefill=[5, 9]", "--set", "bench.decode=2", "--json")
    rows = ssm_export(*words).document["rows"]
    assert {row["tokens"] for row in rows if row["phase"] == "prefill"} == {5, 9}


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("precision=fp16", "verb.option=value"),
        ("export.precision", "verb.option=value"),
        ("exprt.precision=fp16", "did you mean 'export'?"),
        ("export.precison=fp16", "did you mean 'precision'?"),
        ("export.json=true", "no option 'json'"),
        ("export.precision=[", "YAML"),
    ],
)
def test_bad_assignments(ssm_export: Run, assignment: str, named: str) -> None:
    done = ssm_export("export", "x", "-o", "y", "--set", assignment)
    assert done.status == 2
    assert done.stderr.startswith("SSM-E104")
    assert named in done.stderr


@pytest.mark.parametrize("content", ["- a\n", "export: 3\n", "export: {\n", "exports: {}\n"])
def test_bad_files(ssm_export: Run, tmp_path: Path, content: str) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(content)
    done = ssm_export("export", "x", "-o", "y", "--config", file)
    assert done.status == 2
    assert done.stderr.startswith("SSM-E104")
    assert "options.yaml" in done.stderr


def test_a_value_of_the_wrong_kind(ssm_export: Run) -> None:
    done = ssm_export("export", "x", "-o", "y", "--set", "export.precision=int3")
    assert done.status == 2
    assert "int3" in done.stderr


def test_a_missing_file(ssm_export: Run, tmp_path: Path) -> None:
    done = ssm_export("export", "x", "-o", "y", "--config", tmp_path / "none.yaml")
    assert (done.status, done.stderr[:8]) == (2, "SSM-E103")
