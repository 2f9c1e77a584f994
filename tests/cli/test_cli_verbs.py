"""Each verb on a real bundle: what people see, the JSON document, the exit status."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ended, run_process

Run = Callable[..., Ended]
HEAD = {"schema", "ok", "command", "versions"}


def document_of(done: Ended, verb: str) -> dict:
    document = done.document
    assert set(document) >= HEAD
    assert document["schema"] == f"ssm-export/{verb}@1"
    assert document["command"].startswith(f"ssm-export {verb}")
    assert "python" in document["versions"]
    assert done.last_line.startswith("PASSED  " if document["ok"] else "FAILED  ")
    assert done.last_line.endswith(document["command"])
    assert (done.status == 0) == document["ok"]
    return document


def test_list(ssm_export: Run) -> None:
    models = document_of(ssm_export("list", "models", "--json"), "list")
    assert {"mamba", "mamba2"} <= {item["name"] for item in models["items"]}
    operators = document_of(ssm_export("list", "ops", "--json"), "list")
    assert {"CausalConv1d", "SelectiveScan", "SsdScan"} == {i["name"] for i in operators["items"]}
    targets = document_of(ssm_export("list", "targets", "--json"), "list")
    assert "rtx-any" in {item["name"] for item in targets["items"]}
    assert "rtx-any" in ssm_export("list", "targets").stdout
    recipes = document_of(ssm_export("list", "recipes", "--json"), "list")
    assert {"w8a16", "w4a16", "w8a8", "fp8"} <= {item["name"] for item in recipes["items"]}


def test_doctor(ssm_export: Run) -> None:
    document = document_of(ssm_export("doctor", "--json"), "doctor")
    assert {"name", "ok", "detail"} <= set(document["checks"][0])
    assert "onnxruntime" in ssm_export("doctor").stdout


def test_export_dry_run_writes_nothing(ssm_export: Run, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    done = ssm_export("export", checkpoint, "-o", output, "--dry-run", "--json")
    document = document_of(done, "export")
    assert document["bundle"] is None
    assert document["plan"]["family"] == "mamba2"
    assert list(tmp_path.iterdir()) == []


def test_export_shows_what_was_made(bundle: Path) -> None:
    assert (bundle / "manifest.json").is_file()
    assert [path.name for path in bundle.parent.iterdir()] == ["tiny"]


def test_verify_passes(ssm_export: Run, bundle: Path) -> None:
    document = document_of(ssm_export("verify", bundle, "--json"), "verify")
    assert document["ok"] is True
    assert {"name", "ok", "worst", "tolerance", "where"} <= set(document["checks"][0])
    assert "logits" in ssm_export("verify", bundle, "--check", "logits").stdout


def test_verify_fails_on_a_wrong_truth(ssm_export: Run, bundle: Path, tmp_path: Path) -> None:
    """Vectors that another model might have recorded, under a manifest that vouches for them."""
    import numpy as np

    from ssm_export.bundle import Bundle

    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    opened = Bundle.open(copy)
    for entry in opened.manifest.parity:
        with np.load(copy / entry.file.path) as recorded:
            arrays = dict(recorded)
        if "logits" in arrays:
            arrays["logits"] = arrays["logits"] + np.float32(0.1)
        np.savez(copy / entry.file.path, **arrays)
    manifest = json.loads((copy / "manifest.json").read_text())
    for entry in manifest["parity"]:
        fresh = opened.entry(entry["file"]["path"])
        entry["file"].update(bytes=fresh.bytes, sha256=fresh.sha256)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = ssm_export("verify", copy, "--json")
    document = document_of(done, "verify")
    assert done.status == 1
    assert document["error"]["code"] == "SSM-E701"
    assert any(check["ok"] is False for check in document["checks"])
    assert "FAILED" in ssm_export("verify", copy).stdout


def test_bench(ssm_export: Run, bundle: Path) -> None:
    words = ("bench", bundle, "--prefill", "8,33", "--decode", "4", "--batch", "1,2")
    document = document_of(ssm_export(*words, "--json"), "bench")
    rows = document["rows"]
    assert {row["tokens"] for row in rows if row["phase"] == "prefill"} == {8, 33}
    assert {row["batch"] for row in rows} == {1, 2}
    for key in ("phase", "tokens", "batch", "runner", "p50_ms", "p90_ms", "p99_ms", "tokens_per_s"):
        assert key in rows[0]


def test_generate(ssm_export: Run, bundle: Path) -> None:
    words = ("generate", bundle, "def ", "--max-tokens", "12")
    document = document_of(ssm_export(*words, "--json"), "generate")
    assert len(document["tokens"]) == 12
    shown = ssm_export(*words)
    assert shown.stdout.startswith("def ")
    by_tokens = ("generate", bundle, "100,101,102,32", "--tokens", "--max-tokens", "12", "--json")
    assert ssm_export(*by_tokens).document["tokens"] == document["tokens"]


def test_inspect(ssm_export: Run, bundle: Path) -> None:
    document_of(ssm_export("inspect", bundle, "--json"), "inspect")
    assert "mamba2" in ssm_export("inspect", bundle).stdout
    assert ssm_export("inspect", bundle / "onnx" / "step.onnx").status == 0


def test_build_show_trtexec_builds_nothing(ssm_export: Run, bundle: Path) -> None:
    document = document_of(ssm_export("build", bundle, "--show-trtexec", "--json"), "build")
    assert set(document["commands"]) == {"step", "prefill"}
    assert not (bundle / "engines").exists()


def test_shown_commands_can_be_pasted(ssm_export: Run, bundle: Path) -> None:
    words = ("build", bundle, "--show-trtexec")
    commands = ssm_export(*words, "--json").document["commands"]
    assert ssm_export(*words).stdout == "".join(f"{line}\n" for line in commands.values())
    assert max(map(len, commands.values())) > 200  # so there was something to wrap


def test_the_prompt_comes_with_the_tokens(ssm_export: Run, bundle: Path) -> None:
    done = ssm_export("generate", bundle, "def", "--runner", "tensorrt-rtx")
    assert done.status != 0
    assert done.stdout == ""


def test_an_error_after_tokens_begins_a_line(
    ssm_export: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssm_export import api

    def breaks(bundle: Path, prompt: str, *, stream: Callable[[str], None], **_: object) -> None:
        stream(" x")
        raise RuntimeError("broken")

    monkeypatch.setattr(api, "generate", breaks)
    monkeypatch.setattr("tempfile.tempdir", str(bundle.parent))
    done = ssm_export("generate", bundle, "def")
    assert (done.status, done.stdout) == (1, "def x\n")


@pytest.mark.parametrize("columns", [None, "40", "200"])
def test_names_are_never_cut(
    ssm_export: Run, monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    items = ssm_export("list", "targets", "--json").document["items"]
    shown = ssm_export("list", "targets").stdout
    assert {item["name"] for item in items} <= set(shown.split())
    assert "…" not in shown
    widest = max(map(len, shown.splitlines()))
    assert columns == "40" or widest <= int(columns or 110)
    assert columns != "200" or widest > 110


def test_build(ssm_export: Run, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    document = document_of(ssm_export("build", copy, "--max-chunk", "64", "--json"), "build")
    for entry in document["engines"]:
        assert (copy / entry["file"]["path"]).stat().st_size == entry["file"]["bytes"]


def test_quiet_leaves_the_last_line_only(ssm_export: Run, bundle: Path) -> None:
    done = ssm_export("inspect", bundle, "--quiet")
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_stdout_is_one_document_in_a_process_of_its_own(bundle: Path) -> None:
    done = run_process("verify", str(bundle), "--check", "logits", "--json")
    assert document_of(done, "verify")["ok"] is True
    assert len(done.stderr.splitlines()) == 1
