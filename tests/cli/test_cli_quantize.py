"""``quantize`` on a real bundle: reports, the dry run, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Ended

from ssm_export.bundle import Bundle
from ssm_export.cli import group
from ssm_export.cli.running import run

Run = Callable[..., Ended]
FEW = ("--sequences", "4", "--tokens", "24")


def hashes(folder: Path) -> dict[str, str]:
    """Every file of a folder and the SHA-256 of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough UTF-8 for calibration and evaluation."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"def f{n}(x):\n    return x * {n} + 'é'\n" for n in range(200)))
    return path


@pytest.fixture(scope="session")
def made(bundle: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A w8a8 bundle made by the command line: its folder, and the source before and after."""
    output = tmp_path_factory.mktemp("quantized") / "w8a8"
    before = hashes(bundle)
    words = ["quantize", str(bundle), "-o", str(output), "--recipe", "w8a8-plain", *FEW]
    assert run(group, [*words, "--calibration", str(text), "--no-verify", "--quiet"]) == 0
    return {"folder": output, "before": before, "after": hashes(bundle)}


def test_the_source_is_only_read(made: dict[str, Any]) -> None:
    assert made["before"] == made["after"]
    assert made["before"]
    assert [path.name for path in made["folder"].parent.iterdir()] == ["w8a8"]


def test_what_was_made(made: dict[str, Any]) -> None:
    opened = Bundle.open(made["folder"])
    assert opened.manifest.quantization["recipe"] == "w8a8-plain"
    report = json.loads((made["folder"] / "reports" / "quantize.json").read_text())
    size = report["size"]["after"]["weights_file"]
    assert size == (made["folder"] / "onnx" / "weights.data").stat().st_size


def test_the_report(ssm_export: Run, bundle: Path, text: Path, tmp_path: Path) -> None:
    words = ("quantize", bundle, "-o", tmp_path / "w8", *FEW, "--calibration", text)
    other = tmp_path / "held-out.txt"
    other.write_text("".join(f"class C{n}:\n    x = {n}, 'ü'\n" for n in range(200)))
    done = ssm_export(*words, "--evaluation", other, "--target", "jetson-agx-orin", "--json")
    assert done.status == 0, done.stderr
    document = done.document
    assert document["schema"] == "ssm-export/quantize@1"
    assert document["bundle"] == str(tmp_path / "w8")
    assert document["recipe"]["name"] == "w8a16"
    assert document["decode_ceiling"]["target"] == "jetson-agx-orin"
    assert set(document["quality"]) == {"float", "quantized", "step_graph"}
    assert document["lost_bits"] <= document["limit_bits"]
    before, after = (document["size"][when]["read_per_token"] for when in ("before", "after"))
    assert after < 0.6 * before
    keys = {"snr_db", "drift", "sensitivities", "ablation", "notes", "not_run", "seconds"}
    assert keys <= set(document)
    assert Bundle.open(tmp_path / "w8").manifest.verified


def test_people_see_tables(ssm_export: Run, bundle: Path, text: Path, tmp_path: Path) -> None:
    words = ("quantize", bundle, "-o", tmp_path / "w8", *FEW, "--calibration", text)
    shown = ssm_export(*words, "--no-verify", "--no-sensitivity")
    for words_shown in ("w8a16", "bits per byte", "weights file", "--no-sensitivity"):
        assert words_shown in shown.stdout


@pytest.mark.parametrize("recipe", ["w8a16", "w8a8", "w4a16", "fp8", "nvfp4", "mxfp8"])
def test_a_dry_run_says_what_would_be_done(
    ssm_export: Run, bundle: Path, tmp_path: Path, recipe: str
) -> None:
    before = hashes(bundle)
    words = ("quantize", bundle, "-o", tmp_path / "out", "--recipe", recipe, "--dry-run")
    done = ssm_export(*words, "--json")
    assert done.status == 0, done.stderr
    document = done.document
    assert document["schema"] == "ssm-export/quantize@1"
    assert document["bundle"] is None
    plan = document["plan"]
    groups = {item["tensors"]: item for item in plan["groups"]}
    in_proj = groups["backbone.layers.*.mixer.in_proj"]
    assert in_proj["count"] == 1
    assert 0 < in_proj["after"] < 0.5 * in_proj["before"]
    assert plan["weights_after"] < plan["weights_before"]
    assert list(tmp_path.iterdir()) == []
    assert hashes(bundle) == before
    shown = ssm_export(*words).stdout
    assert "nothing was written" in shown
    assert "backbone.layers.*.mixer.in_proj" in shown


def test_a_dry_run_predicts_the_bytes(
    ssm_export: Run, bundle: Path, text: Path, made: dict[str, Any], tmp_path: Path
) -> None:
    """Codes and scales as the graph that is made later has them."""
    words = ("quantize", bundle, "-o", tmp_path / "x", "--recipe", "w8a8-plain", "--dry-run")
    plan = ssm_export(*words, "--calibration", text, *FEW, "--json").document["plan"]
    done = ssm_export("inspect", made["folder"], "--json").document["facts"]["quantization"]
    assert sum(group["after"] for group in plan["groups"]) == done["weights"]["int8"]["bytes"]
    assert "4 rows of 24 tokens" in plan["data"]


def test_a_size_budget_is_an_upper_bound(ssm_export: Run, bundle: Path, tmp_path: Path) -> None:
    words = ("quantize", bundle, "-o", tmp_path / "x", "--recipe", "mixed", "--dry-run")
    plan = ssm_export(*words, "--json").document["plan"]
    assert any(item["after"] is None for item in plan["groups"])
    assert plan["weights_after"] < plan["weights_before"]
    assert "at most" in ssm_export(*words).stdout


def test_python_has_the_same_names(bundle: Path, tmp_path: Path) -> None:
    import ssm_export

    preview = ssm_export.quantize(bundle, tmp_path / "x", recipe="w4a16", dry_run=True)
    assert preview.as_json()["plan"]["groups"]
    assert not (tmp_path / "x").exists()


def test_an_empty_calibration_file(ssm_export: Run, bundle: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for more in ((), ("--dry-run",)):
        words = ("quantize", bundle, "-o", tmp_path / "out", "--calibration", empty, *more)
        refused(ssm_export(*words, "--json"), 2, "SSM-E801", "empty.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_nan_in_recorded_inputs(ssm_export: Run, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, input_ids=np.full((8, 32), np.nan))
    words = ("quantize", bundle, "-o", tmp_path / "out", "--calibration", path, "--json")
    refused(ssm_export(*words), 2, "SSM-E801", "rows.npz")


@pytest.mark.parametrize(
    ("options", "status", "code", "named"),
    [
        (["--recipe", "w8a61"], 2, "SSM-E101", "did you mean 'w8a16'"),
        (["--recipe", "none.yaml"], 2, "SSM-E103", "none.yaml"),
        (["--target", "jetson-orin-agx"], 2, "SSM-E105", "did you mean 'jetson-agx-orin'"),
        (["--recipe", "fp8", "--target", "jetson-agx-orin"], 2, "SSM-E802", "--recipe w8a8"),
        (["--recipe", "nvfp4", "--target", "rtx-ada"], 2, "SSM-E802", "--recipe w4a16"),
        (["--state-dtype", "bf16"], 2, "SSM-E101", "drifts"),
        (["--state-dtype", "int3"], 2, "SSM-E107", "int3"),
        (["--sequences", "0"], 2, "SSM-E107", "--sequences"),
        (["--calibration", "nowhere.txt"], 2, "SSM-E801", "nowhere.txt"),
    ],
)
def test_options_that_cannot_be(
    ssm_export: Run,
    bundle: Path,
    tmp_path: Path,
    options: list[str],
    status: int,
    code: str,
    named: str,
) -> None:
    before = hashes(bundle)
    done = ssm_export("quantize", bundle, "-o", tmp_path / "out", *options, "--json")
    refused(done, status, code, named)
    assert list(tmp_path.iterdir()) == []
    assert hashes(bundle) == before


def test_a_recipe_that_names_what_is_not_there(
    ssm_export: Run, bundle: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "description: mine\nrules:\n  - tensors: ['backbone.layers.*.mixer.in_porj']\n"
        "    weights: int8\n"
    )
    done = ssm_export("quantize", bundle, "-o", tmp_path / "out", "--recipe", recipe, "--json")
    refused(done, 2, "SSM-E104", "in_proj")


def test_a_bundle_that_is_quantized_already(
    ssm_export: Run, made: dict[str, Any], tmp_path: Path
) -> None:
    done = ssm_export("quantize", made["folder"], "-o", tmp_path / "again", "--json")
    refused(done, 2, "SSM-E804", "float bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_left_alone(ssm_export: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    for more in ((), ("--dry-run",)):
        done = ssm_export("quantize", bundle, "-o", tmp_path, *more, "--json")
        refused(done, 2, "SSM-E102", str(tmp_path))
    assert (tmp_path / "precious").read_text() == "kept"


def test_the_source_as_output(ssm_export: Run, bundle: Path) -> None:
    before = hashes(bundle)
    refused(ssm_export("quantize", bundle, "-o", bundle, "--json"), 2, "SSM-E102", "")
    assert hashes(bundle) == before


def test_no_bundle(ssm_export: Run, tmp_path: Path) -> None:
    done = ssm_export("quantize", tmp_path / "nowhere", "-o", tmp_path / "out", "--json")
    refused(done, 2, "SSM-E103", "nowhere")
    done = ssm_export("quantize", tmp_path, "-o", tmp_path / "out", "--json")
    refused(done, 1, "SSM-E401", "")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_were_altered(ssm_export: Run, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    weights = copy / "onnx" / "weights.data"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    refused(ssm_export("quantize", copy, "-o", tmp_path / "o", "--json"), 1, "SSM-E403", "weights")


def test_a_loss_beyond_the_limit(ssm_export: Run, bundle: Path, text: Path, tmp_path: Path) -> None:
    """A recipe that promises what int4 in one block cannot keep; without verify it is reported."""
    recipe = tmp_path / "strict.yaml"
    recipe.write_text(
        "description: strict\nlimit_bits: 0.0000001\nrules:\n"
        "  - {tensors: ['backbone.layers.*.mixer.*_proj'], weights: int4, block: 16}\n"
        "  - {tensors: [backbone.embeddings], weights: int4, block: 16}\n"
    )
    words = ("quantize", bundle, "-o", tmp_path / "out", "--recipe", recipe, *FEW)
    words += ("--calibration", text, "--no-sensitivity")
    refused(ssm_export(*words, "--json"), 1, "SSM-E805", "strict")
    assert not (tmp_path / "out").exists()
    done = ssm_export(*words, "--no-verify", "--json")
    assert done.status == 0, done.stderr
    assert done.document["lost_bits"] > done.document["limit_bits"]
    assert not Bundle.open(tmp_path / "out").manifest.verified


def test_inspect_says_that_it_is_quantized(ssm_export: Run, made: dict[str, Any]) -> None:
    facts = ssm_export("inspect", made["folder"], "--json").document["facts"]["quantization"]
    assert facts["recipe"] == "w8a8-plain"
    assert facts["weights"]["int8"]["count"] == 4  # embedding, head and two of the layer
    assert facts["inputs"]["int8"] > 0
    assert isinstance(facts["lost_bits"], float)
    shown = ssm_export("inspect", made["folder"]).stdout
    assert "recipe w8a8-plain" in shown
    assert "Formats" in shown


def test_the_other_verbs_take_it(ssm_export: Run, made: dict[str, Any]) -> None:
    done = ssm_export("generate", made["folder"], "def ", "--max-tokens", "4", "--json")
    assert done.status == 0, done.stderr
    assert len(done.document["tokens"]) == 4
    assert ssm_export("verify", made["folder"], "--check", "logits", "--json").document["checks"]


def refused(done: Ended, status: int, code: str, named: str) -> None:
    error = done.document["error"]
    assert (done.status, error["code"]) == (status, code), error
    assert named in " ".join(error.values())
    assert "Traceback" not in done.stderr
