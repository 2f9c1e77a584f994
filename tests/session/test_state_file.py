"""A saved state: bit-equal when it comes back, read by safetensors, and refused elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import V, make_toy_bundle

from ssm_export import Bundle, Session, State, errors, state_file
from ssm_export.errors import SsmExportError


@pytest.fixture
def saved(session_of, tmp_path):
    session = session_of()
    session.prefill([[5, 6, 7], [1, 2, 3]])
    file = tmp_path / "two.state"
    session.state.save(file)
    return session.state, file


def refused(file, bundle):
    with pytest.raises(SsmExportError) as caught:
        State.load(file, bundle)
    assert str(file) in str(caught.value)
    return caught.value


def test_what_is_loaded_is_bit_equal_and_goes_on_bit_equal(saved, toy, session_of):
    state, file = saved
    loaded = State.load(file, toy().path)
    for name, array in state.arrays().items():
        assert loaded.arrays()[name].tobytes() == array.tobytes()
    assert loaded.last_logits().tobytes() == state.last_logits().tobytes()
    assert loaded.tokens_read().tolist() == [3, 3]
    made = []
    for one in (state, loaded):
        session = session_of()
        session.restore(one)
        made.append(session.generate(max_tokens=8, ends=frozenset()))
        made.append(session.step([[1], [2]]).tobytes())
    assert made[:2] == made[2:]


def test_a_fork_is_saved_as_one_row_and_comes_back_as_a_fork(saved, toy, tmp_path):
    state, file = saved
    forked = state.select([1]).fork(50)
    forked.save(tmp_path / "forked.state")
    assert (tmp_path / "forked.state").stat().st_size < 0.7 * file.stat().st_size
    loaded = State.load(tmp_path / "forked.state", toy())
    assert (loaded.rows, loaded.bytes_per_row) == (50, state.bytes_per_row)
    for name, array in loaded.arrays().items():
        np.testing.assert_array_equal(array, np.repeat(state.arrays()[name][1:], 50, axis=0))
    mixed = state.select([1, 0, 1])
    mixed.save(tmp_path / "mixed.state")
    again = State.load(tmp_path / "mixed.state", toy())
    assert all(np.array_equal(a, mixed.arrays()[n]) for n, a in again.arrays().items())


def test_a_state_without_logits_is_saved_too(session_of, toy, tmp_path):
    session = session_of()
    session.reset(2)
    session.state.save(tmp_path / "begin.state")
    loaded = State.load(tmp_path / "begin.state", toy())
    assert loaded.last_logits() is None
    session.restore(loaded)
    with pytest.raises(SsmExportError) as caught:
        session.generate(max_tokens=1)
    assert caught.value.code is errors.EMPTY_PROMPT


def test_the_library_safetensors_reads_the_same(saved):
    numpy_reader = pytest.importorskip("safetensors.numpy")
    state, file = saved
    read = numpy_reader.load_file(file)
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(read.pop(name), array)
    np.testing.assert_array_equal(read.pop("logits"), state.last_logits())
    np.testing.assert_array_equal(read.pop("tokens"), [3, 3])
    assert read == {}


def test_other_graphs_of_the_same_model_take_it(saved, session_of, toy, truth):
    file = saved[1]
    for options in ({"ragged": True}, {"every": True}):
        session = session_of(**options)
        session.restore(State.load(file, toy(**options)))
        session.step([[8], [4]])
        want, _ = truth.forward(np.array([[5, 6, 7, 8], [1, 2, 3, 4]]))
        np.testing.assert_allclose(session.logits, want[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_another_lowering_takes_it_and_goes_on_the_same(bundle_of, tmp_path, family):
    bundle = Bundle.open(bundle_of(family))
    ids = np.random.default_rng(0).integers(0, 50, (2, 9))
    file = tmp_path / "a.state"
    with Session(bundle, lowering="ort") as session:
        session.prefill(ids)
        session.state.save(file)
        want = session.step(ids[:, :1])
    with Session(bundle, lowering="canonical") as session:
        session.restore(State.load(file, bundle))
        np.testing.assert_allclose(session.step(ids[:, :1]), want, rtol=1e-3, atol=1e-4)


def sibling(toy, folder, **changes):
    """A copy of the bundle whose manifest says otherwise."""
    shutil.copytree(toy().path, folder)
    bundle = Bundle.open(folder, check_hashes=False)
    for name, value in changes.items():
        setattr(bundle.manifest, name, value)
    bundle.save()
    return Bundle.open(folder, check_hashes=False)


@pytest.mark.parametrize("kind", ["weights", "activations", "states", "family"])
def test_another_model_is_refused_and_both_are_named(saved, toy, tmp_path, kind):
    state, file = saved
    manifest = toy().manifest
    retyped = [dataclasses.replace(spec, dtype="float16") for spec in manifest.states]
    other_weights = dataclasses.replace(manifest.weights, sha256="ab" * 32)
    changes = {
        "weights": {"weights": other_weights},
        "activations": {"quantization": {"weights": {}, "activations": {"x": {"scale": 0.5}}}},
        "states": {"states": tuple(retyped)},
        "family": {"family": "another"},
    }
    other = sibling(toy, tmp_path / "other", **changes[kind])
    error = refused(file, other)
    assert error.code is errors.STATE_MISMATCH
    assert f"toy with weights {manifest.weights.sha256[:12]}" in error.what
    assert str(other.manifest.family) in error.what and other.manifest.weights.sha256[:12] in str(
        error
    )
    with pytest.raises(SsmExportError) as caught:
        Session(other, runner=Unused()).restore(state)
    assert caught.value.code is errors.STATE_MISMATCH


class Unused:
    """A runner that is not run."""

    info = None

    def run(self, form, feeds):
        raise AssertionError

    def close(self):
        pass


def test_a_truncated_or_longer_file_is_refused(saved, toy):
    _, file = saved
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in (0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert refused(file, toy()).code is errors.BAD_STATE_FILE, size
    file.write_bytes(whole + b"\0")
    assert refused(file, toy()).code is errors.BAD_STATE_FILE


def test_one_wrong_bit_anywhere_is_found(saved, toy):
    _, file = saved
    whole = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, header, 300), *rng.integers(header, len(whole), 300)]
    found = set()
    for place in places:
        bit = 1 << int(rng.integers(8))
        whole[place] ^= bit
        file.write_bytes(whole)
        whole[place] ^= bit
        with pytest.raises(SsmExportError) as caught:
            State.load(file, toy())
        found.add(caught.value.code.code)
    # One bit makes version 1 another version; that is refused as well.
    assert found - {errors.NEWER_SCHEMA.code} == {errors.BAD_STATE_FILE.code}


@pytest.mark.parametrize("size", [1, 4, 8, 64])
def test_what_was_put_into_another_order_is_found(saved, toy, size):
    """Two pieces of one tensor change places: sums of the words stay as they are."""
    _, file = saved
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8:start])
    rng = np.random.default_rng(0)
    for name in ("past_ssm.0", "past_conv.1", "logits"):
        first, last = (start + offset for offset in entries[name]["data_offsets"])
        for _ in range(20):
            one, other = rng.choice((last - first) // size, 2, replace=False) * size + first
            moved = bytearray(whole)
            moved[one : one + size] = whole[other : other + size]
            moved[other : other + size] = whole[one : one + size]
            if moved != whole:
                file.write_bytes(moved)
                assert refused(file, toy()).code is errors.BAD_STATE_FILE


def test_what_is_no_regular_file_is_refused_and_not_waited_for(saved, toy, tmp_path, monkeypatch):
    _, file = saved
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)  # who opened it would wait otherwise
    try:
        for path, said in (
            (pipe, "no regular file"),
            (Path("/dev/zero"), "no regular file"),
            (Path("/dev/null"), "no regular file"),
            (file / "foo", "Not a directory"),
            (tmp_path / ("x" * 300), "name too long"),
        ):
            error = refused(path, toy())
            assert (error.code, said in error.what) == (errors.BAD_STATE_FILE, True)
    finally:
        os.close(held)

    def forbidden(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", forbidden)
    with pytest.raises(SsmExportError) as caught:
        state_file.read(file)
    assert caught.value.code is errors.NO_PERMISSION


def test_what_was_never_a_state_is_refused(saved, toy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    foreign = tmp_path / "foreign"
    tensors = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  '
    for content in (
        pickle.dumps(Bomb()),
        b"text\n" * 100,
        len(tensors).to_bytes(8, "little") + tensors + bytes(4),
        (2).to_bytes(8, "little") + b"[]",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ):
        foreign.write_bytes(content)
        assert refused(foreign, toy()).code is errors.BAD_STATE_FILE
    assert not (tmp_path / "ran").exists()
    assert refused(tmp_path, toy()).code is errors.BAD_STATE_FILE
    assert refused(tmp_path / "none", toy()).code is errors.NO_SUCH_PATH


def test_a_file_of_a_newer_release_says_so(saved, toy):
    _, file = saved
    file.write_bytes(file.read_bytes().replace(b"ssm-export/state@2", b"ssm-export/state@3", 1))
    error = refused(file, toy())
    assert (error.code, "--upgrade" in error.fix) == (errors.NEWER_SCHEMA, True)


def test_a_file_of_the_schema_before_says_so_and_may_be_replaced(saved, toy):
    state, file = saved
    file.write_bytes(file.read_bytes().replace(b"ssm-export/state@2", b"ssm-export/state@1", 1))
    error = refused(file, toy())
    assert (error.code, "schema 1" in error.what) == (errors.BAD_STATE_FILE, True)
    assert "--save-state" in error.fix
    state.save(file)
    assert State.load(file, toy()).rows == 2


def test_an_older_state_is_replaced_and_nothing_else_is(saved, toy, tmp_path):
    state, file = saved
    mapped = State.load(file, toy())
    before = {name: array.copy() for name, array in mapped.arrays().items()}
    state.select([0]).save(file)
    assert State.load(file, toy()).rows == 1
    # What was loaded from the replaced file is still there.
    assert all(np.array_equal(array, before[name]) for name, array in mapped.arrays().items())
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for place, code in (
        (notes, errors.OUTPUT_EXISTS),
        (tmp_path, errors.OUTPUT_EXISTS),
        (tmp_path / "none" / "a.state", errors.NO_SUCH_PATH),
    ):
        with pytest.raises(SsmExportError) as caught:
            state.save(place)
        assert caught.value.code is code
    assert notes.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "two.state"]


def test_the_header_is_what_the_documentation_says(saved):
    state, file = saved
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert (8 + size) % 64 == 0
    assert set(header) == {"__metadata__", "logits", "tokens", *state.arrays()}
    assert set(header["__metadata__"]) == {
        "format",
        "family",
        "weights_sha256",
        "scheme_sha256",
        "states_sha256",
        "rows",
        "checksum",
    }
    assert header["logits"]["shape"] == [2, V]
    told = header["__metadata__"].pop("checksum")
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = (8 + size + offset for offset in entry["data_offsets"])
            digest.update(zlib.crc32(data[first:last]).to_bytes(4, "little"))
    assert digest.hexdigest() == told


def test_a_bundle_of_other_weights_in_earnest(saved, tmp_path):
    """Not only another manifest: a bundle of this model with one weight changed."""
    _, file = saved
    other = make_toy_bundle(tmp_path / "toy")
    data = bytearray((other.path / "onnx/weights.data").read_bytes())
    data[100] ^= 1
    (other.path / "onnx/weights.data").write_bytes(data)
    other.manifest.weights = other.entry("onnx/weights.data")
    assert refused(file, other).code is errors.STATE_MISMATCH
