"""Calibration rows: exact ids and bytes of text, every kind of file, and all that can be wrong."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_bundle import PlainRunner, Truth, V, make_toy_bundle, make_weights

from ssm_export import errors
from ssm_export.bundle import Bundle, FileEntry, Manifest
from ssm_export.errors import SsmExportError
from ssm_export.quantization.data import Rows, generated_rows, read_rows, split_rows
from ssm_export.quantization.text import byte_lengths

tokenizers = pytest.importorskip("tokenizers")
SOURCE = Path(__file__).read_bytes()  # ASCII Python source
PROSE = "Größe, naïve café – 漢字かな交じり文 🙂🚀, ∑ x² ≤ √2.\n"


def bytes_of_level() -> dict[str, int]:
    """Character of the byte-level alphabet to its byte, as GPT-2's encoder.py makes it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    names = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(rest))]
    return dict(zip(names, printable + rest, strict=True))


LEVEL = bytes_of_level()


def model(folder: Path, tokenizer=None, size: int = 256) -> Bundle:
    """A bundle with a tokenizer and the size of its vocabulary, and no graphs."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    nothing = FileEntry("onnx/weights.data", 0, "")
    sizes = {"V": size}
    manifest = Manifest(
        {}, "toy", sizes, "fp32", "fp32", "last", False, (), {}, {"chosen": "native"}, nothing
    )
    return Bundle(folder, manifest)


def byte_tokenizer():
    """Id = byte, as the demo models have it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=LEVEL, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def merging_tokenizer(size: int = 700):
    """A trained byte-level BPE: tokens of many bytes, and of parts of a character."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([SOURCE.decode(), PROSE * 3], trainer)
    return made


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory) -> Bundle:
    return model(tmp_path_factory.mktemp("byte"), byte_tokenizer())


@pytest.fixture(scope="module")
def merging(tmp_path_factory) -> Bundle:
    return model(tmp_path_factory.mktemp("bpe"), merging_tokenizer(), 700)


def test_ascii_source_to_ids_and_back_is_exact(bytewise: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_bytes(SOURCE)
    rows = read_rows(file, bytewise, sequences=20, tokens=256)
    assert rows.ids.shape == (20, 256) and rows.ids.dtype == np.int64
    starts = []
    for row in rows.ids:
        piece = bytes(row.tolist())
        assert piece in SOURCE
        starts.append(SOURCE.index(piece))
    assert rows.bytes_per_token == 1.0
    assert all(b - a >= 256 for a, b in itertools.pairwise(starts))  # share no byte
    assert starts[0] == 0 and starts[-1] > len(SOURCE) - 2 * 256  # and reach to the end
    assert str(file) in rows.source


def test_bytes_of_characters_outside_ascii_are_those_of_utf8(bytewise, tmp_path) -> None:
    file = tmp_path / "prose.txt"
    data = (PROSE * 100).encode()
    file.write_bytes(data)
    rows = read_rows(file, bytewise, sequences=9, tokens=101)  # windows cut characters in two
    assert all(bytes(row.tolist()) in data for row in rows.ids)
    assert rows.bytes_per_token == pytest.approx(1.0, rel=1e-12)
    assert rows.row_bytes == pytest.approx(np.full(9, 101.0), rel=1e-12)


@pytest.mark.parametrize("text", [SOURCE.decode(), PROSE * 120])
def test_bytes_of_merged_tokens(merging: Bundle, tmp_path: Path, text: str) -> None:
    file = tmp_path / "text"
    file.write_text(text, encoding="utf-8", newline="")
    rows = read_rows(file, merging, sequences=8, tokens=64)
    tokenizer = merging_tokenizer()
    assert rows.row_bytes is not None and rows.bytes_per_token is not None
    for row, counted in zip(rows.ids, rows.row_bytes, strict=True):
        pieces = [bytes(LEVEL[c] for c in tokenizer.id_to_token(int(i))) for i in row]
        assert b"".join(pieces) in text.encode()
        # A window may begin or end inside a character, whose bytes its tokens share evenly.
        edge = 0 if text.isascii() else 3
        assert abs(counted - sum(map(len, pieces))) <= edge
    assert rows.bytes_per_token == pytest.approx(rows.row_bytes.sum() / rows.ids.size)


@given(st.text())
def test_byte_lengths_are_those_of_the_encoder(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert byte_lengths(text).tolist() == [len(char.encode()) for char in text]


def test_a_large_file_is_read_in_places_and_little_of_it(bytewise, tmp_path) -> None:
    file = tmp_path / "large.txt"
    line = "é{:07d}\n"  # 10 bytes; places in the file begin inside characters
    file.write_text("".join(line.format(i) for i in range(300_000)), encoding="utf-8", newline="")
    rows = read_rows(file, bytewise, sequences=7, tokens=128)
    assert rows.ids.shape == (7, 128)
    data = file.read_bytes()
    starts = [data.index(bytes(row.tolist())) for row in rows.ids]
    assert starts[0] == 0 and starts[-1] > 0.98 * len(data)
    gaps = np.diff(starts)
    assert gaps.min() > 0.9 * gaps.max()
    assert rows.bytes_per_token == pytest.approx(1.0, rel=1e-12)


def test_the_same_file_gives_the_same_rows(bytewise: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_bytes(SOURCE)
    once, again = (read_rows(file, bytewise, sequences=5, tokens=100) for _ in range(2))
    assert np.array_equal(once.ids, again.ids) and once.sha256 == again.sha256
    ids = np.ascontiguousarray(once.ids, dtype="<i8")
    assert once.sha256 == hashlib.sha256(b"(5, 100)" + ids.tobytes()).hexdigest()
    fewer = read_rows(file, bytewise, sequences=4, tokens=100)
    assert fewer.sha256 != once.sha256


def save(folder: Path, kind: str, ids: np.ndarray) -> Path:
    file = folder / f"ids.{kind}"
    if kind == "json":
        file.write_text(json.dumps(ids.tolist()))
    elif kind == "npy":
        np.save(file, ids)
    else:
        np.savez(file, input_ids=ids, past_ssm=np.zeros((2, 3)))
    return file


@pytest.mark.parametrize("kind", ["json", "npy", "npz"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.float32])
def test_ids_from_every_kind_of_file(bytewise, tmp_path, kind, dtype) -> None:
    ids = np.arange(200, dtype=dtype)
    rows = read_rows(save(tmp_path, kind, ids), bytewise, sequences=4, tokens=50)
    assert rows.ids.tolist() == np.arange(200).reshape(4, 50).tolist()
    assert rows.bytes_per_token is None
    square = ids.reshape(4, 50)
    same = read_rows(save(tmp_path, kind, square), bytewise, sequences=4, tokens=50)
    assert same.sha256 == rows.sha256


def test_windows_do_not_run_over_the_end_of_a_document(bytewise, tmp_path) -> None:
    ids = np.repeat(np.arange(10)[:, None], 75, axis=1)  # row i holds i
    rows = read_rows(save(tmp_path, "npy", ids), bytewise, sequences=10, tokens=50)
    assert rows.ids.tolist() == [[i] * 50 for i in range(10)]


def test_documents_of_several_lengths(bytewise: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    file.write_text(json.dumps({"input_ids": [[1] * 30, [2] * 130, [3] * 7, [4] * 64]}))
    rows = read_rows(file, bytewise, sequences=9, tokens=64)
    assert rows.ids.tolist() == [[2] * 64, [2] * 64, [4] * 64]
    file.write_text(json.dumps([[i] * 70 for i in range(5)] + [[9] * 200]))
    rows = read_rows(file, bytewise, sequences=9, tokens=100)  # two of 100, or seven of 70
    assert rows.ids.tolist() == [[i] * 70 for i in (0, 1, 2, 3, 4, 9, 9)]


def test_recordings_are_cut_to_their_lengths(bytewise: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "inputs.npz"
    padded = np.full((2, 90), 255)
    padded[0, :80], padded[1, :40] = 1, 2
    np.savez(
        file,
        input_ids=padded,
        sequence_lengths=np.array([80, 40], np.int32),
        input_ids_2=np.full(40, 3),
        logits=np.full(3, np.nan),
    )
    rows = read_rows(file, bytewise, sequences=9, tokens=40)
    assert rows.ids.tolist() == [[1] * 40, [1] * 40, [2] * 40, [3] * 40]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=5),
    sequences=st.integers(1, 12),
    tokens=st.integers(2, 300),
)
def test_rows_are_windows_of_the_documents(tmp_path_factory, lengths, sequences, tokens) -> None:
    folder = tmp_path_factory.mktemp("ids")
    ends = np.cumsum(lengths)
    documents = [list(range(end - n, end)) for end, n in zip(ends, lengths, strict=True)]
    file = folder / "ids.json"
    file.write_text(json.dumps(documents))
    least = min(sequences, 2)
    try:
        rows = read_rows(
            file, model(folder, size=max(int(ends[-1]), 1)), sequences=sequences, tokens=tokens
        )
    except SsmExportError as error:
        assert "too short" in error.what
        assert sum(n // min(tokens, 32) for n in lengths) < least or max(lengths) < 32 * least
        return
    count, length = rows.ids.shape
    assert least <= count <= sequences
    assert min(tokens, 32) <= length <= tokens
    flat = rows.ids.ravel().tolist()
    assert flat == sorted(set(flat))  # in order, no token twice
    held = [set(document) for document in documents]
    for row in rows.ids.tolist():
        assert row == list(range(row[0], row[0] + length))
        assert any(set(row) <= document for document in held)


@pytest.mark.parametrize(
    ("name", "held", "said", "fix"),
    [
        ("a.txt", b"", "it is empty", "4 × 64 = 256 tokens"),
        ("a.txt", b"short", "too short: 5 tokens", "least that will do is 2 × 32 = 64"),
        ("a.txt", b"x" * 63, "too short: 63 tokens", "2 × 32"),
        ("a.txt", b"abc\xff" * 99, "not UTF-8 text: byte 0xff at 3", "UTF-8"),
        ("a.txt", "ab".encode("utf-16") * 99, "byte 0xff at 0", "UTF-8"),
        ("a.txt", b"ab\xc3", "byte 0xc3 at 2", "UTF-8"),
        ("a.json", b"", "it is empty", "tokens"),
        ("a.json", b"[]", "too short: 0 tokens", "tokens"),
        ("a.json", b"[1, 2", "cannot be read", "again"),
        ("a.json", b"{}", "no list of ids", "input_ids"),
        ("a.json", b'"text"', "no list of ids", "input_ids"),
        ("a.json", b"[1, [2]]", "mixes ids with lists", "give"),
        ("a.json", b"[[[1]]]", "lists in lists of lists", "give"),
        ("a.json", b"[1, NaN]", "holds NaN at position 1", "whole numbers"),
        ("a.json", b"[1, 2.5]", "holds 2.5 at position 1", "whole numbers"),
        ("a.json", b"[true, false]", "holds True", "whole numbers"),
        ("a.json", b"[1, null]", "holds None", "whole numbers"),
        ("a.json", b'["a", "b"]', "holds 'a'", "whole numbers"),
        ("a.json", b"[1180591620717411303424]", "holds 1180591620717411303424", "whole"),
        ("a.json", b"[[1, 2], [3, 256]]", "id 256 at position 1.*V = 256", "this model"),
        ("a.json", b"[-1]", "id -1 at position 0", "this model"),
        ("a.npy", b"\x93NUMPY", "cannot be read", "again"),
        ("a.npz", b"PK\x03\x04zz", "cannot be read", "again"),
    ],
)
def test_files_that_cannot_be_used(bytewise, tmp_path, name, held, said, fix) -> None:
    file = tmp_path / name
    file.write_bytes(held)
    with pytest.raises(SsmExportError, match=said) as caught:
        read_rows(file, bytewise, sequences=4, tokens=64)
    assert caught.value.code == errors.BAD_CALIBRATION
    assert caught.value.where == str(file)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"logits": np.zeros(3)}, "no array 'input_ids', only logits"),
        ({}, "no array 'input_ids', only none"),
        ({"input_ids": np.zeros((2, 3, 4))}, "its ids are 2×3×4"),
        ({"input_ids": np.array(3)}, "a single number"),
        ({"input_ids": np.full((2, 80), np.nan)}, "holds NaN"),
        ({"input_ids": np.array([{}], dtype=object)}, "cannot be read"),
        ({"input_ids": np.zeros((2, 80), int), "sequence_lengths": [80]}, "1 lengths for 2 rows"),
        ({"input_ids": np.zeros((2, 80), int), "sequence_lengths": [1, 2]}, "3 in 2 documents"),
        ({"input_ids": np.zeros((2, 80), int), "sequence_lengths": [80, -5]}, "row 1 .* of -5"),
        ({"input_ids": np.zeros((2, 80), int), "sequence_lengths": [80, 81]}, "row 1 .* of 81"),
    ],
)
def test_recordings_that_cannot_be_used(bytewise, tmp_path, arrays, said) -> None:
    file = tmp_path / "inputs.npz"
    np.savez(file, **arrays)
    with pytest.raises(SsmExportError, match=said) as caught:
        read_rows(file, bytewise, sequences=4, tokens=64)
    assert caught.value.code == errors.BAD_CALIBRATION


def test_a_file_that_is_not_there_and_a_folder(bytewise: Bundle, tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.txt", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(SsmExportError, match=said) as caught:
            read_rows(path, bytewise, sequences=4, tokens=64)
        assert caught.value.code == errors.BAD_CALIBRATION


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_bytes(SOURCE)
    small = model(tmp_path / "small", byte_tokenizer(), size=100)
    with pytest.raises(SsmExportError, match=r"the vocabulary of the model has V = 100") as caught:
        read_rows(file, small, sequences=4, tokens=64)
    assert "tokenizer" in caught.value.why
    first = next(byte for byte in SOURCE if byte >= 100)
    assert re.search(rf"\b{first}\b", caught.value.what)


def test_text_for_a_model_without_a_tokenizer(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "code.py"
    file.write_bytes(SOURCE)
    bare = model(tmp_path / "bare")
    with pytest.raises(SsmExportError, match=r"no tokenizer\.json") as caught:
        read_rows(file, bare, sequences=4, tokens=64)
    assert caught.value.code == errors.NO_TOKENIZER and "token ids" in caught.value.fix
    (bare.path / "tokenizer.json").write_text("{}")
    with pytest.raises(SsmExportError, match="cannot be read") as caught:
        read_rows(file, bare, sequences=4, tokens=64)
    assert caught.value.code == errors.NO_TOKENIZER
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SsmExportError, match="'tokenizers'") as caught:
        read_rows(file, bare, sequences=4, tokens=64)
    assert caught.value.code == errors.MISSING_PACKAGE


@pytest.mark.parametrize(("sequences", "tokens"), [(0, 64), (4, 1), (-1, 64)])
def test_numbers_that_make_no_sense(bytewise, tmp_path, sequences, tokens) -> None:
    with pytest.raises(SsmExportError, match="are asked for") as caught:
        read_rows(tmp_path / "x", bytewise, sequences=sequences, tokens=tokens)
    assert caught.value.code == errors.BAD_OPTION


@given(count=st.integers(2, 40), share=st.floats(0.01, 0.99))
def test_the_evaluation_rows_are_the_last_and_are_not_calibrated_with(count, share) -> None:
    sizes = np.arange(count) + 1.0
    rows = Rows.of(np.arange(count * 3).reshape(count, 3), "file", sizes)
    first, last = split_rows(rows, share)
    assert np.concatenate([first.ids, last.ids]).tolist() == rows.ids.tolist()
    assert len(first.ids) >= 1 and len(last.ids) >= 1
    assert abs(len(last.ids) - count * share) < 1 or len(last.ids) in (1, count - 1)
    assert len({first.sha256, last.sha256, rows.sha256}) == 3
    assert last.bytes_per_token == pytest.approx(sizes[-len(last.ids) :].mean() / 3)
    assert f"last {len(last.ids)} of {count}" in last.source


def test_what_cannot_be_split() -> None:
    rows = Rows.of(np.zeros((1, 3)), "file")
    with pytest.raises(SsmExportError, match="1 sequence") as caught:
        split_rows(rows, 0.5)
    assert caught.value.code == errors.BAD_CALIBRATION
    for share in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(SsmExportError, match="share") as caught:
            split_rows(Rows.of(np.zeros((4, 3)), "file"), share)
        assert caught.value.code == errors.BAD_OPTION


def test_the_model_writes_what_it_would_say(tmp_path: Path) -> None:
    """The tokens drawn have the probabilities of the float64 model, within their spread."""
    bundle = make_toy_bundle(tmp_path / "toy")
    rows = generated_rows(bundle, 600, 12, seed=3, runner=PlainRunner(bundle))
    assert rows.ids.shape == (600, 12) and rows.bytes_per_token is None
    assert "the model itself" in rows.source and "seed 3" in rows.source
    assert len(np.unique(rows.ids[:, 0])) == V  # 600 draws of 40: all are seen
    logits, _ = Truth(make_weights()).forward(rows.ids)
    logits = logits[:, :-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p = np.exp(log_p)
    mean = (p * log_p).sum(-1)  # of log p(token) when tokens have the probabilities p
    spread = np.sqrt(((p * log_p**2).sum(-1) - mean**2).sum())

    def sigmas(tokens: np.ndarray) -> float:
        drawn = np.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0]
        return float(abs((drawn - mean).sum()) / spread)

    assert sigmas(rows.ids) < 4
    assert sigmas(np.roll(rows.ids, 1, axis=0)) > 8  # tokens of another row would not pass
    counts = np.bincount(rows.ids[:, 1:].ravel(), minlength=V)
    expected = p.sum((0, 1))
    spread = np.sqrt((p * (1 - p)).sum((0, 1)))
    assert np.abs((counts - expected) / spread).max() < 4.5


def test_generated_rows_depend_on_the_seed_alone(tmp_path: Path) -> None:
    bundle = make_toy_bundle(tmp_path / "toy", ragged=True)
    runner = PlainRunner(bundle)
    first, again, other = (
        generated_rows(bundle, 3, 8, seed, runner=runner).sha256 for seed in (0, 0, 1)
    )
    assert first == again != other
