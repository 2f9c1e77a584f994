"""The C++ runner compiles, links, says what it would do, and refuses what it must.

It is the real program with the real library of TensorRT-RTX, on real engines. No engine has run:
there is no GPU here.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from runner_builds import SAMPLE, build_folder, compile_in, require, run

from ssm_export.bundle import SCHEMA_VERSION, Bundle
from ssm_export.machine import load_driver
from ssm_export.resources import load_plugins

CHUNK = 32

pytestmark = pytest.mark.slow


def test_what_it_is_linked_to(runner: Path) -> None:
    require("readelf")
    needed = re.findall(r"NEEDED.*\[(.+?)\]", run("readelf", "-d", runner).stdout)
    names = {name.split(".so")[0] for name in needed}
    assert "libtensorrt_rtx" in names
    assert names <= {"libtensorrt_rtx", "libstdc++", "libm", "libgcc_s", "libc", "libdl"}


def test_help_and_version(runner: Path) -> None:
    import tensorrt_rtx

    said = run(runner, "--help")
    assert (said.returncode, said.stderr) == (0, "")
    code = (SAMPLE / "src" / "options.cpp").read_text(encoding="utf-8")
    for option in re.findall(r'word == "(--[a-z-]+)"', code):
        assert option in said.stdout
    version = run(runner, "--version")
    assert version.returncode == 0
    assert f"tensorrt-rtx {tensorrt_rtx.__version__}," in version.stdout


def test_dry_run(runner: Path, built: Bundle) -> None:
    said = run(runner, built.path, "--dry-run", "--batch", "3")
    assert (said.returncode, said.stderr) == (0, "")
    per_row = sum(state.bytes_per_row for state in built.manifest.states)
    count = len(built.manifest.states)
    assert (
        f"states: {count}, {per_row} bytes a row; for 3 rows {6 * per_row} bytes in {2 * count} "
        "buffers, past and present alternate"
    ) in said.stdout
    for index, state in enumerate(built.manifest.states):
        shape = ",".join(str(size) for size in (3, *state.shape[1:]))
        buffers = f"buffer {2 * index} -> {2 * index + 1}, then {2 * index + 1} -> {2 * index}"
        assert (
            f"  {state.name_in} -> {state.name_out}  {state.dtype} ({shape})  "
            f"{3 * state.bytes_per_row} bytes, {buffers}\n"
        ) in said.stdout
    for entry in built.manifest.engines:
        assert f"  {entry.form}: {entry.file.path}, {entry.file.bytes} bytes, " in said.stdout
    assert f"tokens 1 to {CHUNK}" in said.stdout
    assert "CUDA graphs of a step: 2\n" in said.stdout


def test_without_a_gpu(runner: Path, built: Bundle) -> None:
    if load_driver() is not None:
        pytest.skip("there is a GPU here")
    for words in (("--ids", "1,2,3"), ("--check",)):
        said = run(runner, built.path, *words)
        assert said.returncode == 3
        assert said.stderr.startswith("SSM-E602  ")
        assert "Fix: " in said.stderr


def entry_of(document: dict[str, Any], form: str) -> dict[str, Any]:
    return next(entry for entry in document["engines"] if entry["form"] == form)


def without(document: dict[str, Any], *path: str) -> None:
    for step in path[:-1]:
        document = document[step]
    del document[path[-1]]


BROKEN = {
    "another tool": (lambda d: d.update(schema="other@1"), "E401", "its schema is 'other@1'"),
    "newer": (
        lambda d: d.update(schema=f"ssm-export/bundle@{SCHEMA_VERSION + 1}"),
        "E402",
        f"schema {SCHEMA_VERSION + 1}",
    ),
    "no schema": (lambda d: without(d, "schema"), "E401", "there is no 'schema'"),
    "no states": (lambda d: without(d, "states"), "E401", "there is no 'states'"),
    "no vocabulary": (lambda d: without(d, "sizes", "V"), "E401", "there is no 'V'"),
    "states are no array": (lambda d: d.update(states={}), "E401", "'states' is an object"),
    "a state's type": (
        lambda d: d["states"][1].update(dtype="float8"),
        "E401",
        "'past_ssm.0' has the unknown type 'float8'",
    ),
    "a state's shape": (
        lambda d: d["states"][0].update(shape=["batch", -3]),
        "E401",
        "has an axis of -3",
    ),
    "a state's beginning": (
        lambda d: d["states"][0].update(initial_value=0.5),
        "E401",
        "does not begin with zeros",
    ),
    "a profile": (
        lambda d: entry_of(d, "step")["profile"].update(batch=[1, 2]),
        "E401",
        "has no three sizes",
    ),
    "no engines": (lambda d: d.update(engines=[]), "E504", "no engine of kind 'tensorrt-rtx'"),
    "one form": (
        lambda d: d["engines"].remove(entry_of(d, "prefill")),
        "E504",
        "no engines of both forms",
    ),
    "engine of another version": (
        lambda d: [e["versions"].update(tensorrt_rtx="1.2.0.54") for e in d["engines"]],
        "E503",
        "it was built with tensorrt-rtx 1.2.0.54, here is ",
    ),
    "engine file that is not there": (
        lambda d: entry_of(d, "step")["file"].update(path="engines/none.engine"),
        "E404",
        "'engines/none.engine', which is not there",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_manifests(name: str, runner: Path, copied: Path) -> None:
    change, code, words = BROKEN[name]
    file = copied / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    said = run(runner, copied, "--dry-run")
    assert said.returncode == 1
    assert said.stderr.startswith(f"SSM-{code}  ")
    assert words in said.stderr
    assert "Fix: " in said.stderr
    assert said.stderr.count("\n") == 1


def test_a_manifest_that_is_cut_off(parts: Path, copied: Path) -> None:
    """At any byte: an error that says so, and no other end."""
    file = copied / "manifest.json"
    whole = file.read_bytes()
    for size in (0, 1, len(whole) // 3, len(whole) - 2):
        file.write_bytes(whole[:size])
        said = run(parts, "choose", copied, "tensorrt-rtx", "1", "linux-x86_64", "0")
        assert said.returncode == 1
        assert f"the document ends too early (byte {size} of {size})" in said.stderr, size


def test_files_that_were_changed(runner: Path, copied: Path) -> None:
    engine = (
        copied
        / entry_of(json.loads((copied / "manifest.json").read_text()), "step")["file"]["path"]
    )
    whole = engine.read_bytes()
    engine.write_bytes(whole[:-1])
    said = run(runner, copied, "--dry-run")
    assert (said.returncode, f"{len(whole) - 1} bytes" in said.stderr) == (1, True)
    engine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said = run(runner, copied, "--dry-run")
    assert said.stderr.startswith("SSM-E403") and "SHA-256" in said.stderr
    assert "ssm-export build" in said.stderr
    engine.write_bytes(whole)
    recorded = copied / "parity" / "generate.npz"
    recorded.write_bytes(b"PK" + recorded.read_bytes()[2:-1])
    said = run(runner, copied, "--dry-run", "--check")
    assert said.stderr.startswith("SSM-E403")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "SSM-E107"),
        (("nowhere", "--dry-run"), "SSM-E103"),
        (("BUNDLE",), "SSM-E107"),
        (("BUNDLE", "--nothing"), "SSM-E107"),
        (("BUNDLE", "--ids"), "SSM-E107"),
        (("BUNDLE", "--ids", "1,x"), "SSM-E107"),
        (("BUNDLE", "--ids", "1,40"), "SSM-E107"),
        (("BUNDLE", "--ids", "-1"), "SSM-E107"),
        (("BUNDLE", "--ids", "1", "--tokens", "0"), "SSM-E107"),
        (("BUNDLE", "--ids", "1", "--batch", "5"), "SSM-E107"),
        (("BUNDLE", "--ids-file", "nowhere.txt"), "SSM-E103"),
        (("BUNDLE", "BUNDLE", "--dry-run"), "SSM-E107"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], code: str, runner: Path, built: Bundle) -> None:
    said = run(runner, *(str(built.path) if word == "BUNDLE" else word for word in words))
    assert (said.returncode, said.stderr[:8]) == (2, code)


def test_aarch64(pytestconfig: pytest.Config) -> None:
    """For JetPack 6, whose C library is 2.35; it runs, where an emulator or the machine can."""
    load_plugins()
    from ssm_export_plugins import library

    require("cmake", "aarch64-linux-gnu-g++", "readelf")
    with build_folder(pytestconfig, "aarch64") as folder:
        compile_in(
            folder,
            "-DRUNTIME=none",
            "-DSSM_RUNNER_TESTS=ON",
            "-DCMAKE_BUILD_TYPE=Debug",
            f"-DCMAKE_TOOLCHAIN_FILE={library.AARCH64}",
            "-DCMAKE_CXX_FLAGS=-Werror",
        )
    program = folder / "ssm_runner_tests"
    assert library.architecture(program) == "aarch64"
    versions = run("readelf", "--version-info", "--wide", program).stdout
    found = re.findall(r"GLIBC_([\d.]+)", versions)
    newest = max(tuple(map(int, version.split("."))) for version in found)
    assert newest <= (2, 35)
    if platform.machine() != "aarch64":
        root = Path("/usr/aarch64-linux-gnu")
        if shutil.which("qemu-aarch64") is None or not root.is_dir():
            return
        assert run("qemu-aarch64", "-L", root, program, "decode").stdout.strip() == "1024"
