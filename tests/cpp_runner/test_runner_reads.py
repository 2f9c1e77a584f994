"""What the C++ runner reads: JSON, recorded arrays, hashes, numbers; and which engines it takes.

Each against Python's own, under the address and undefined-behaviour sanitizers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runner_builds import run

from ssm_export.bundle import Bundle

pytestmark = pytest.mark.slow


class JsonReader:
    """The C++ reader in a process that stays: a document in, its canonical form out."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [str(program), "json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, document: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(document.encode().hex() + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")


@pytest.fixture(scope="module")
def read_json(parts: Path) -> Iterator[JsonReader]:
    reader = JsonReader(parts)
    yield reader
    reader.process.stdin.close()
    assert reader.process.wait() == 0


class Members(list):
    """The members of an object, as many and in the order as they are written."""


def python_canonical(value: Any) -> str:
    if value is None:
        return "n"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return f"i{value}"
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.copysign(math.inf, value)
        return "d" + format(struct.unpack("<Q", struct.pack("<d", number))[0], "x")
    if isinstance(value, str):
        return "s" + value.encode().hex()
    if isinstance(value, Members):
        parts = (f"{name.encode().hex()}:{python_canonical(one)}," for name, one in value)
        return "{" + "".join(parts) + "}"
    return "[" + "".join(f"{python_canonical(one)}," for one in value) + "]"


def refuse(constant: str) -> None:
    raise ValueError(constant)


def as_python_reads_it(document: str) -> str | None:
    try:
        value = json.loads(document, object_pairs_hook=Members, parse_constant=refuse)
    except ValueError:
        return None
    try:
        return python_canonical(value)
    except UnicodeEncodeError:  # half a surrogate pair, which Python takes and UTF-8 has not
        return None


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(value=VALUES, escaped=st.booleans(), indent=st.none() | st.integers(0, 3))
def test_json_of_any_value(
    value: Any, escaped: bool, indent: int | None, read_json: JsonReader
) -> None:
    document = json.dumps(value, ensure_ascii=escaped, indent=indent)
    assert read_json(document) == as_python_reads_it(document)


@settings(max_examples=600, deadline=None)
@given(
    value=VALUES,
    at=st.integers(0, 1 << 30),
    cut=st.integers(0, 2),
    put=st.text(alphabet='{}[]",:\\/ubnt0123456789abef-+.eE \n\x01truefalsn', max_size=3),
)
def test_json_that_was_damaged(
    value: Any, at: int, cut: int, put: str, read_json: JsonReader
) -> None:
    """It takes what Python takes and refuses what Python refuses."""
    document = json.dumps(value)
    place = at % (len(document) + 1)
    document = document[:place] + put + document[place + cut :]
    wanted, found = as_python_reads_it(document), read_json(document)
    assert found.startswith("error: ") if wanted is None else found == wanted


def test_json_edges(read_json: JsonReader) -> None:
    for document in ("[" * 150 + "]" * 150, '"\\ud83d\\ude00"', "1e999", "-0", "-0.0", "\t1\r\n"):
        assert read_json(document) == as_python_reads_it(document)
    for document in ("[" * 5000, "\ufeff1", "'a'", "[1,]", "01", "1 2", "NaN", '"\\ud800"', "//"):
        assert read_json(document).startswith("error: "), document


def test_real_manifests(read_json: JsonReader, built: Bundle) -> None:
    text = (built.path / "manifest.json").read_text()
    assert read_json(text) == as_python_reads_it(text)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, (1 << 20) + 1])
def test_sha256(size: int, parts: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(np.random.default_rng(size).bytes(size))
    assert (
        run(parts, "sha256", file).stdout.strip() == hashlib.sha256(file.read_bytes()).hexdigest()
    )


ARRAYS = {
    "int64": np.arange(-3, 4000, dtype=np.int64).reshape(1, -1),
    "int32": np.array([5, -7], dtype=np.int32),
    "float32": np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32),
    "float16": np.zeros((2, 3000), dtype=np.float16),
    "scalar": np.float32(2.5).reshape(()),
    "text": np.frombuffer(Path(__file__).read_bytes()[:4096], dtype=np.int32),
}


def test_npz(parts: Path, tmp_path: Path) -> None:
    """Stored, deflated at every level, and in blocks of fixed codes."""
    files = [tmp_path / "stored.npz", tmp_path / "packed.npz"]
    np.savez(files[0], **ARRAYS)
    np.savez_compressed(files[1], **ARRAYS)
    for level in (0, 1, 9):
        files.append(tmp_path / f"level{level}.npz")
        with zipfile.ZipFile(files[0]) as stored, zipfile.ZipFile(files[-1], "w") as packed:
            for name in stored.namelist():
                packed.writestr(name, stored.read(name), zipfile.ZIP_DEFLATED, level)
    for file in files:
        for name, array in ARRAYS.items():
            said = run(parts, "npz", file, name)
            assert said.returncode == 0, said.stderr
            head, content = said.stdout.splitlines()
            assert head.split() == [array.dtype.name, *map(str, array.shape)]
            assert bytes.fromhex(content) == array.tobytes()
    said = run(parts, "npz", files[0], "none")
    assert (said.returncode, "it has no none.npy" in said.stderr) == (1, True)


def test_damaged_npz(parts: Path, tmp_path: Path) -> None:
    """An error or what was stored, never a crash; the sanitizers watch."""
    file = tmp_path / "damaged.npz"
    np.savez_compressed(file, a=np.random.default_rng(1).integers(0, 9, 60))
    whole = file.read_bytes()
    right = run(parts, "npz", file, "a").stdout
    rng = np.random.default_rng(2)
    refused = 0
    for round_ in range(60):
        damaged = bytearray(whole)
        if round_ % 4 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        said = run(parts, "npz", file, "a")
        assert said.returncode in (0, 1) and "Sanitizer" not in said.stderr, said.stderr
        assert said.stdout in ("", right)
        refused += said.returncode
    assert refused > 30


def test_half_and_bfloat16(parts: Path, tmp_path: Path) -> None:
    file = tmp_path / "all"
    every = np.arange(1 << 16, dtype=np.uint16)
    file.write_bytes(every.tobytes())
    for kind, wanted in (
        ("float16", every.view(np.float16).astype(np.float32)),
        ("bfloat16", (every.astype(np.uint32) << 16).view(np.float32)),
    ):
        found = np.array(run(parts, "floats", kind, file).stdout.split(), dtype=np.float64)
        np.testing.assert_array_equal(found.astype(np.float32), wanted)


def with_engines(folder: Path, built: Bundle, *changes: dict[str, Any]) -> None:
    """The manifest with engines as they might be: changes of the step engine that was built."""
    step = next(entry for entry in built.manifest.engines if entry.form == "step")
    engines = [dataclasses.replace(step, **change) for change in changes]
    manifest = dataclasses.replace(built.manifest, engines=tuple(engines))
    (folder / "manifest.json").write_text(manifest.to_json())


def test_which_engines_it_takes(parts: Path, copied: Path, built: Bundle) -> None:
    def chosen(kind: str, version: str, system: str, capability: int, target: str = "") -> str:
        said = run(parts, "choose", copied, kind, version, system, str(capability), target)
        return said.stdout.strip() if said.returncode == 0 else said.stderr

    def files(name: str, **facts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        one = next(entry for entry in built.manifest.engines if entry.form == "step").file
        return tuple(
            {"form": form, "file": dataclasses.replace(one, path=f"{name}/{form}"), **facts}
            for form in ("step", "prefill")
        )

    rtx = {"engine": "tensorrt-rtx", "versions": {"tensorrt_rtx": "1.7.1.116"}}
    full = {"engine": "tensorrt", "versions": {"tensorrt": "10.3.0"}, "platform": "linux-aarch64"}
    with_engines(
        copied,
        built,
        *files("any", target="rtx-any", compute_capability="8.6+", **rtx),
        *files("ada", target="rtx-ada", compute_capability="8.9", **rtx),
        *files("nano", target="orin-nano-8gb", compute_capability="8.7", **full),
        {**files("one", target="agx", compute_capability="11.0", **full)[0], "form": "unified"},
    )
    here = ("tensorrt-rtx", "1.7.1.116", "linux-x86_64")
    assert chosen(*here, 89) == "ada/step ada/prefill"
    assert chosen(*here, 120) == "any/step any/prefill"
    assert chosen(*here, 89, "rtx-any") == "any/step any/prefill"
    assert "8.6+, this GPU has 8.0" in chosen(*here, 80, "rtx-any")
    assert "built for compute capability 8.9, this GPU has 9.0" in chosen(*here, 90, "rtx-ada")
    assert "here is 1.7.1.117" in chosen("tensorrt-rtx", "1.7.1.117", "linux-x86_64", 89)
    board = ("tensorrt", "10.3.0.30", "linux-aarch64")
    assert chosen(*board, 87) == "nano/step nano/prefill"
    assert chosen(*board, 110) == "one/step one/step"
    assert "for the target 'none'" in chosen(*board, 87, "none")
    assert "it was built with tensorrt 10.3.0, here is 10.30.0" in chosen(
        "tensorrt", "10.30.0", "linux-aarch64", 87
    )
    wrong = chosen("tensorrt", "10.3.0.30", "linux-x86_64", 87, "orin-nano-8gb")
    assert "it was built on linux-aarch64, this is linux-x86_64" in wrong
    assert "ssm-export build" in wrong and "--target orin-nano-8gb --engine tensorrt" in wrong
