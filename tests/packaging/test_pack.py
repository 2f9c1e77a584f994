"""What is in a pack, that its bytes depend on nothing else, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import ssm_export
from ssm_export import errors
from ssm_export.bundle import Bundle, EngineEntry
from ssm_export.errors import SsmExportError
from ssm_export.packaging import make_pack
from ssm_export.packaging.device_library import device_library
from ssm_export.targets import get_target

BOARD = "jetson-agx-orin"


class Hook:
    """Progress that calls back when a task of a label has advanced so often."""

    def __init__(self, label: str, count: int, action: Callable[[], None]) -> None:
        self.label, self.count, self.action, self.active = label, count, action, False

    def task(self, label: str, total: float | None = None) -> Hook:
        self.active = label == self.label
        return self

    def advance(self, amount: float = 1.0) -> None:
        if self.active:
            self.count -= 1
            if self.count == 0:
                self.action()


def index_of(folder: Path) -> dict:
    return json.loads((folder / "pack.json").read_text())


def test_every_file_is_listed_and_is_what_the_list_says(unpacked):
    folder = unpacked(BOARD)
    listed = {entry["path"]: entry for entry in index_of(folder)["files"]}
    found = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert found == {*listed, "pack.json"}
    for path, entry in listed.items():
        content = (folder / path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            entry["bytes"],
            entry["sha256"],
        )


def test_what_the_device_needs_is_there_and_nothing_that_only_this_machine_needs(unpacked, toy):
    folder = unpacked(BOARD)
    bundle = Bundle.open(folder / "bundle")  # its hashes are checked
    assert bundle.manifest.parity == toy.manifest.parity
    assert set(bundle.manifest.graphs["step"]) == {"canonical", "native"}
    assert bundle.manifest.engines == ()
    assert (folder / "run.sh").stat().st_mode & 0o111
    index = index_of(folder)
    assert index["platform"] == "linux-aarch64"
    assert {release["python"] for release in index["jetpack"]} == {"3.10", "3.12"}
    assert not (folder / "requirements-rtx.txt").exists()


def test_only_the_targets_kernels_and_none_of_the_engines_go(toy, tmp_path):
    """Kernels and an engine of two boards in a bundle: bytes stand in, nothing reads them."""
    shutil.copytree(toy.path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    graphs = bundle.manifest.graphs.setdefault("unified", {})
    for name in (f"plugin-{BOARD}", "plugin-h100"):
        (bundle.path / f"onnx/unified.{name}.onnx").write_bytes(name.encode())
        graphs[name] = bundle.entry(f"onnx/unified.{name}.onnx")
    (bundle.path / "engines").mkdir()
    (bundle.path / "engines/step.engine").write_bytes(b"engine")
    bundle.manifest.engines = (
        EngineEntry("step", "h100", "tensorrt", bundle.entry("engines/step.engine"), {}, "", "9.0",
                    {}, False, ""),
    )  # fmt: skip
    (bundle.path / "reports").mkdir(exist_ok=True)
    for name in ("bench-onnxruntime.json", "verify.json", "quantize.json"):
        (bundle.path / "reports" / name).write_text("{}")
    bundle.save()
    report = make_pack(bundle, BOARD, tmp_path / "made.tar")
    assert report.lowering == "plugin"
    with tarfile.open(tmp_path / "made.tar") as tar:
        names = {name.removeprefix("made/") for name in tar.getnames()}
    assert f"bundle/onnx/unified.plugin-{BOARD}.onnx" in names
    assert "plugin/source/CMakeLists.txt" in names
    assert "bundle/reports/quantize.json" in names
    away = {"onnx/unified.plugin-h100.onnx", "engines/step.engine"}
    assert set(report.left_out) == away
    away |= {"reports/bench-onnxruntime.json", "reports/verify.json"}
    assert not {f"bundle/{name}" for name in away} & names


def test_the_bundle_is_only_read(toy, tmp_path):
    before = {f: f.stat().st_mtime_ns for f in toy.path.rglob("*")}
    make_pack(toy, "rtx-any", tmp_path / "made.tar")
    assert {f: f.stat().st_mtime_ns for f in toy.path.rglob("*")} == before


def test_equal_content_gives_equal_bytes(packs, toy, tmp_path):
    first = packs(BOARD).read_bytes()
    again = tmp_path / f"toy-{BOARD}.tar"
    report = make_pack(toy, BOARD, again, lowering="native")
    assert again.read_bytes() == first
    assert report.sha256 == hashlib.sha256(first).hexdigest()
    assert report.bytes == len(first)


def test_the_wheel_holds_this_package_and_pip_takes_it(unpacked, tmp_path):
    (wheel,) = (unpacked("rtx-any") / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert "ssm_export/packaging/board/run.sh" in names
    assert "ssm_export/configs/targets/rtx-any.yaml" in names
    assert "ssm_export_plugins/tensorrt/CMakeLists.txt" in names
    assert not [name for name in names if "__pycache__" in name]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(wheel)], check=True)
    script = f"import sys; sys.path.insert(0, '{tmp_path}/site'); import ssm_export.targets as t; "
    script += "print(t.__file__, len(t.target_names()))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert int(done.stdout.split()[-1]) > 10


def test_an_interrupted_run_leaves_nothing(toy, tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    for count in (1, 20, 40):
        with pytest.raises(KeyboardInterrupt):
            make_pack(
                toy, "rtx-any", tmp_path / "made.tar", progress=Hook("packing", count, interrupt)
            )
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_changes_meanwhile_is_noticed(toy, tmp_path):
    shutil.copytree(toy.path, tmp_path / "bundle")
    weights = tmp_path / "bundle/onnx/weights.data"

    def change() -> None:
        content = bytearray(weights.read_bytes())
        content[100] ^= 1
        weights.write_bytes(content)

    make_pack(toy, "rtx-any", tmp_path / "count.tar")
    with tarfile.open(tmp_path / "count.tar") as tar:
        files = len(tar.getnames()) - 1  # hashed once each, before the first is written
    with pytest.raises(SsmExportError, match=r"weights\.data") as raised:
        make_pack(
            Bundle.open(tmp_path / "bundle"),
            "rtx-any",
            tmp_path / "made.tar",
            progress=Hook("packing", files, change),
        )
    assert raised.value.code is errors.HASH_MISMATCH
    assert not (tmp_path / "made.tar").exists()


@pytest.mark.parametrize(
    ("output", "options", "code"),
    [
        ("made.tar.gz", {"target": BOARD}, errors.BAD_OPTION),
        ("made", {"target": BOARD}, errors.BAD_OPTION),
        ("made.tar", {"target": "jetson-agx-onir"}, errors.UNKNOWN_TARGET),
        ("made.tar", {}, errors.BAD_OPTION),
        ("made.tar", {"target": "rtx-any", "lowering": "plugin"}, errors.BAD_OPTION),
        ("made.tar", {"target": BOARD, "lowering": "ort"}, errors.BAD_OPTION),
        ("made.tar", {"target": BOARD, "streams": 5}, errors.BAD_OPTION),
        ("made", {"triton": True, "lowering": "native"}, errors.BAD_OPTION),
        ("made", {"triton": True, "max_batch": 0}, errors.BAD_OPTION),
    ],
)
def test_bad_options(toy, tmp_path, output, options, code):
    with pytest.raises(SsmExportError) as raised:
        ssm_export.package(toy, tmp_path / output, **options)
    assert raised.value.code is code
    assert raised.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("triton", [False, True])
def test_what_stands_there_is_not_replaced(toy, tmp_path, triton):
    (tmp_path / "made.tar").write_text("mine")
    with pytest.raises(SsmExportError) as raised:
        options = {"triton": True} if triton else {"target": BOARD}
        ssm_export.package(toy, tmp_path / "made.tar", **options)
    assert raised.value.code is errors.OUTPUT_EXISTS
    assert (tmp_path / "made.tar").read_text() == "mine"


def test_a_board_that_is_too_small_is_refused_unless_forced(toy, tmp_path, monkeypatch):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/crumb.yaml").write_text(
        "description: A board with 10 kB\ncompute_capability: '8.7'\nengines: [tensorrt]\n"
        "precisions: [fp32]\nmemory_gb: 0.00001\nreserve_gb: 0.000001\n"
    )
    monkeypatch.setenv("SSM_EXPORT_TARGETS", str(tmp_path / "targets"))
    with pytest.raises(SsmExportError, match="predicted") as raised:
        make_pack(toy, "crumb", tmp_path / "made.tar", lowering="native")
    assert raised.value.code is errors.TOO_LITTLE_MEMORY
    report = make_pack(toy, "crumb", tmp_path / "made.tar", lowering="native", force=True)
    assert report.predicted["predicted"] is True
    assert report.predicted["fits"] is False


def test_without_headers_the_device_compiles_the_library(monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    found = device_library(get_target(BOARD))
    assert found.path == ""
    assert found.note
    assert {file.path.split("/")[1] for file in found.files} == {"source"}


def test_headers_of_another_major_release_are_not_used(monkeypatch, tmp_path):
    if shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("cmake") is None:
        pytest.skip("no cross compiler")
    (tmp_path / "NvInfer.h").write_text("")
    (tmp_path / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 11 //!< major\n")
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    assert "11" in device_library(get_target(BOARD)).note


@pytest.mark.slow
def test_the_library_is_cross_compiled(monkeypatch):
    from ssm_export.resources import load_plugins

    load_plugins()
    from ssm_export_plugins import library

    if library.find_headers() is None or shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("no TensorRT headers (TENSORRT_ROOT), or no cross compiler")
    monkeypatch.setattr("ssm_export.packaging.device_library._major", lambda headers: "10")
    found = device_library(get_target(BOARD))
    (made,) = [file for file in found.files if file.path == found.path]
    assert isinstance(made.source, bytes)
    assert made.source[:4] == b"\x7fELF"
    assert int.from_bytes(made.source[18:20], "little") == 183  # EM_AARCH64
    assert device_library(get_target(BOARD)).files[-1].source == made.source
