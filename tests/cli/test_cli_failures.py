"""Every way to fail: one line with a code, the right status, nothing left that looks finished."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from command_line import ENVIRONMENT, ROOT, Ended, run_process

from ssm_export.cli.common import Job, Result, verb
from ssm_export.cli.running import run

Run = Callable[..., Ended]


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def edit_weights(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors")

    return change


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)


def malicious(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    (folder / "model.safetensors").unlink()
    torch.save({"w": Trap()}, folder / "pytorch_model.bin")


D = "backbone.layers.0.mixer.D"
BAD = [
    ("no config", no_config, "SSM-E201", ["config.json"]),
    ("unknown model_type", edit_config(model_type="mambo2"), "SSM-E202", ["mambo2", "mamba2"]),
    (
        "other sizes",
        edit_config(num_heads=2, head_dim=16),
        "SSM-E203",
        ["backbone.layers.0.mixer", "(4,)", "(2,)"],
    ),
    ("missing tensor", edit_weights(lambda w: w.pop(D)), "SSM-E204", [D]),
    (
        "unexpected tensor",
        edit_weights(lambda w: w.update({"backbone.extra": torch.ones(2)})),
        "SSM-E205",
        ["backbone.extra"],
    ),
    ("truncated", truncate, "SSM-E206", ["model.safetensors"]),
    ("malicious", malicious, "SSM-E207", ["pytorch_model.bin", "system"]),
    ("nan", edit_weights(lambda w: w[D].fill_(float("nan"))), "SSM-E208", [D, "NaN"]),
    ("inf", edit_weights(lambda w: w[D].fill_(float("inf"))), "SSM-E208", [D]),
    ("bad config", lambda f: (f / "config.json").write_text("{"), "SSM-E210", ["config.json"]),
]


@pytest.mark.parametrize(("spoil", "code", "named"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_checkpoint(
    ssm_export: Run,
    checkpoint: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    code: str,
    named: list[str],
) -> None:
    copy, output = tmp_path / "checkpoint", tmp_path / "bundles" / "bundle"
    shutil.copytree(checkpoint, copy)
    spoil(copy)
    done = ssm_export("export", copy, "-o", output, "--parity", "quick", "--json")
    assert done.status == 1
    error = done.document["error"]
    assert error["code"] == code
    for name in named:
        assert name in error["what"] + error["where"]
    assert len(done.stderr.splitlines()) == 2
    assert done.last_line.startswith("FAILED  ")
    assert not output.parent.exists() or list(output.parent.iterdir()) == []


def test_an_existing_output_is_left_alone(
    ssm_export: Run, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("kept")
    done = ssm_export("export", checkpoint, "-o", tmp_path, "--json")
    assert (done.status, done.document["error"]["code"]) == (2, "SSM-E102")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_folder_that_is_no_bundle(ssm_export: Run, tmp_path: Path) -> None:
    for words in (["verify"], ["build"], ["bench"]):
        done = ssm_export(*words, tmp_path, "--json")
        assert (done.status, done.document["error"]["code"]) == (1, "SSM-E401")
    done = ssm_export("verify", tmp_path / "nowhere", "--json")
    assert (done.status, done.document["error"]["code"]) == (2, "SSM-E103")


def test_a_bundle_that_was_altered(ssm_export: Run, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    weights = copy / "onnx" / "weights.data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    for words in (["verify", copy], ["bench", copy], ["generate", copy, "x"], ["build", copy]):
        done = ssm_export(*words, "--json")
        assert (done.status, done.document["error"]["code"]) == (1, "SSM-E403"), words


def test_a_newer_manifest(ssm_export: Run, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema": "ssm-export/bundle@99"}))
    done = ssm_export("verify", copy, "--json")
    assert (done.status, done.document["error"]["code"]) == (1, "SSM-E402")


def test_a_machine_without_torch(checkpoint: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom ssm_export.cli import main\nmain()"
    output = str(tmp_path / "bundle")
    done = run_process("export", str(checkpoint), "-o", output, "--json", code=code)
    assert (done.status, done.document["error"]["code"]) == (3, "SSM-E601")
    assert "ssm-export[export]" in done.document["error"]["fix"]


def fake(body: Callable[[Job], Result]) -> click.Group:
    """A command line with the one verb ``work``."""

    @verb("work")
    def work(job: Job) -> Result:
        """Work."""
        return body(job)

    return click.Group("ssm-export", commands={"work": work})


def raising(error: BaseException) -> click.Group:
    def body(job: Job) -> Result:
        raise error

    return fake(body)


def test_an_unexpected_exception(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ZeroDivisionError("by nothing\nsecond line")), ["work"]) == 1
    captured = capsys.readouterr()
    first, last = captured.err.splitlines()
    assert first.startswith("SSM-E901  ZeroDivisionError: by nothing.")
    assert last.startswith("FAILED  ")
    traceback_file = Path(first.split("traceback is in ")[1].split(";")[0])
    try:
        assert "in body" in traceback_file.read_text()
    finally:
        traceback_file.unlink()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/somewhere/file"), 1, "SSM-E405"),
        (PermissionError(errno.EACCES, "Permission denied", "/locked/file"), 2, "SSM-E106"),
        (KeyboardInterrupt(), 130, "SSM-E130"),
        (ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"), 3, "SSM-E601"),
    ],
)
def test_errors_of_the_system(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, code: str
) -> None:
    assert run(raising(error), ["work", "--json"]) == status
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == code
    assert "Traceback" not in captured.err


CHATTY = """
import os, sys
import click
from ssm_export.cli.common import Job, Result, verb
from ssm_export.cli.running import run

@verb("work")
def work(job):
    "Work."
    print("from Python")
    os.write(1, b"from a native library\\n")
    job.out.write(sys.argv[2] if len(sys.argv) > 2 else "")
    return Result({"answer": 42})

sys.exit(run(click.Group("ssm-export", commands={"work": work}), ["work", "--json"]))
"""


def test_what_libraries_print_never_reaches_stdout() -> None:
    done = run_process(code=CHATTY)
    assert done.status == 0
    assert done.document["answer"] == 42
    assert "from Python" in done.stderr
    assert "from a native library" in done.stderr


def test_a_reader_that_leaves() -> None:
    command = f"{sys.executable} -m ssm_export list ops --json | true"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_infinite_numbers_become_words(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"high": float("inf"), "low": [-float("inf"), 1.5], "none": (float("nan"),)}
    assert run(fake(lambda job: Result(values)), ["work", "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (document["high"], document["low"]) == ("inf", ["-inf", 1.5])
    assert document["none"] == ["nan"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle(tmp_path: Path, number: signal.Signals) -> None:
    """Stop an export while it writes; only the words on stderr remain."""
    source = ROOT / "samples" / "train_demo" / "mamba-bytes"
    words = ["export", str(source), "-o", str(tmp_path / "bundle"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ssm_export", *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.*.part/onnx/weights.data")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert json.loads(out)["error"]["code"] == "SSM-E130"
    assert err.splitlines()[-1].startswith("FAILED  ")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
