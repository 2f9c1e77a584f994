"""Text to token ids, with the bytes that each id stands for; files of any size in little memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.errors import SsmExportError, missing_package

TOKENIZER: Final = "tokenizer.json"
LARGE: Final = 16
"""A file is large when it has more bytes than this for each token wanted: text has about four."""
MOST: Final = 64
"""Bytes that are read for each token wanted in one place of a large file, at most."""
WHOLE: Final = 1 << 20
"""Bytes of a file that is tokenized whole however little is wanted."""
_PIECE: Final = 1 << 13
"""Characters that are tokenized at once; tokenizers slow down on long strings."""


@dataclass(frozen=True)
class Document:
    """Tokens that belong together.

    Attributes:
        ids: (n,) integers.
        begins: (n+1,) float64: where in the text, in bytes, each token begins, and where the last
            ends; None where there is no text. Tokens of one character share its bytes.
    """

    ids: np.ndarray
    begins: np.ndarray | None = None


class _Tokenizer(Protocol):
    """The part of ``tokenizers.Tokenizer`` that is used."""

    def encode_batch(self, input: Sequence[str], *, add_special_tokens: bool) -> Sequence[Any]: ...


def read_text(file: Path, bundle: Bundle, sequences: int, tokens: int) -> list[Document]:
    """Tokenize a UTF-8 file.

    A file that is large for what is wanted is read in ``sequences`` places spread evenly over it,
    each a document of at most ``tokens`` tokens; any other file is one document.

    Raises:
        SsmExportError: ``BAD_CALIBRATION`` where it is not UTF-8, ``NO_TOKENIZER``,
            ``MISSING_PACKAGE``.
    """
    tokenizer = _load_tokenizer(bundle)
    size = file.stat().st_size
    if size <= max(WHOLE, sequences * tokens * LARGE):
        return [_tokenized(tokenizer, _decoded(file, 0, size))]
    span = min(size // sequences, tokens * MOST)
    starts = [place * (size - span) // max(sequences - 1, 1) for place in range(sequences)]
    return [_tokenized(tokenizer, _decoded(file, start, span), tokens) for start in starts]


def byte_lengths(text: str) -> np.ndarray:
    """Bytes of UTF-8 of each character of a text (n,): (n,) int64."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)


def _load_tokenizer(bundle: Bundle) -> _Tokenizer:
    path = bundle.path / TOKENIZER
    instead = "give token ids: a .json, .npy or .npz file"
    if not path.is_file():
        raise SsmExportError(
            errors.NO_TOKENIZER,
            f"there is no {TOKENIZER}, which text needs",
            where=str(bundle.path),
            fix=instead,
        )
    try:
        import tokenizers
    except ImportError as error:
        raise missing_package("tokenizers", "quantize", "calibration from text") from error
    try:
        loaded: _Tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises Exception itself
        raise SsmExportError(
            errors.NO_TOKENIZER, f"it cannot be read: {error}", where=str(path), fix=instead
        ) from error
    return loaded


def _decoded(file: Path, start: int, length: int) -> str:
    """Text of a part of a file, without the characters that its borders cut."""
    with file.open("rb") as stream:
        stream.seek(start)
        data = stream.read(length)
        whole = start == 0 and not stream.read(1)
    if start:
        cut = next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
        start, data = start + cut, data[cut:]
    try:
        return codecs.utf_8_decode(data, "strict", whole)[0]
    except UnicodeDecodeError as error:
        raise SsmExportError(
            errors.BAD_CALIBRATION,
            f"it is not UTF-8 text: byte 0x{data[error.start]:02x} at {start + error.start}",
            where=str(file),
            fix="give UTF-8 text; ids and recorded inputs end in .json, .npy or .npz",
        ) from error


def _tokenized(tokenizer: _Tokenizer, text: str, limit: int | None = None) -> Document:
    """One document of a text, of at most ``limit`` tokens."""
    ids: list[np.ndarray] = []
    begins: list[np.ndarray] = []
    count, at = 0, 0
    for piece in _pieces(text, _PIECE if limit is None else min(_PIECE, 4 * limit)):
        (encoding,) = tokenizer.encode_batch([piece], add_special_tokens=False)
        lengths = byte_lengths(piece)
        ids.append(np.asarray(encoding.ids, dtype=np.int64))
        begins.append(at + _begins(encoding.offsets, lengths))
        at += int(lengths.sum())
        count += len(encoding.ids)
        if limit is not None and count > limit:
            break
    begins.append(np.array([float(at)]))
    end = count if limit is None else min(count, limit)
    all_ids = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    return Document(all_ids[:end], np.concatenate(begins)[: end + 1])


def _pieces(text: str, longest: int) -> Iterator[str]:
    """The text in pieces that end with a line where they can."""
    at = 0
    while at < len(text):
        end = min(at + longest, len(text))
        line = text.rfind("\n", at, end) + 1
        if line > at and end < len(text):
            end = line
        yield text[at:end]
        at = end


def _begins(offsets: Sequence[tuple[int, int]], lengths: np.ndarray) -> np.ndarray:
    """Where each token (n,) begins, in bytes, from its characters (first, last + 1)."""
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    position = np.concatenate([[0], np.cumsum(lengths)])
    first, last = position[spans[:, 0]].astype(np.float64), position[spans[:, 1]]
    # Tokens of the same characters follow each other: part k of n begins k/n on the way.
    new = np.ones(len(spans), dtype=bool)
    new[1:] = (spans[1:] != spans[:-1]).any(axis=1)
    run = np.cumsum(new) - 1
    parts = np.bincount(run, minlength=1)
    number = np.arange(len(spans)) - np.flatnonzero(new)[run]
    return first + (last - first) * number / parts[run]
