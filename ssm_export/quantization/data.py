"""Token ids for calibration and evaluation: from text, ids, recorded inputs, or the model itself.

Whatever the source, rows are whole windows of it, spread evenly from its beginning to its end, and
the same source gives the same rows. No window runs over the border of two documents or recordings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines.runner import Recurrent, Runner
from ssm_export.errors import SsmExportError
from ssm_export.progress import SILENT, Progress
from ssm_export.quantization.text import Document, read_text
from ssm_export.verification.opening import opened
from ssm_export.verification.truth import vocabulary

SHORTEST: Final = 32
"""Tokens of the shortest sequence that statistics are taken from, where longer ones are wanted."""
INPUT_IDS: Final = "input_ids"
LENGTHS: Final = "sequence_lengths"
_PIECE: Final = 1 << 20
"""Ids that are checked at once, so that a mapped file of any size needs little memory."""


@dataclass(frozen=True)
class Rows:
    """Sequences of token ids.

    Attributes:
        ids: (N,T) int64, every one below V.
        source: where they are from, for reports.
        sha256: of the ids and their shape; the name of statistics that were taken from them.
        bytes_per_token: bytes of UTF-8 text that one id stands for, on the mean of these rows;
            None where the text is not known.
        row_bytes: (N,) the same of each row, in bytes.
    """

    ids: np.ndarray
    source: str
    sha256: str
    bytes_per_token: float | None = None
    row_bytes: np.ndarray | None = None

    @classmethod
    def of(cls, ids: np.ndarray, source: str, row_bytes: np.ndarray | None = None) -> Rows:
        """Rows of ids (N,T), with their hash and the mean of their bytes (N,)."""
        ids = np.ascontiguousarray(ids, dtype="<i8")
        digest = hashlib.sha256(f"{ids.shape}".encode() + ids.tobytes()).hexdigest()
        mean = None if row_bytes is None else float(row_bytes.sum()) / ids.size
        return cls(ids, source, digest, mean, row_bytes)


def read_rows(path: str | os.PathLike[str], bundle: Bundle, *, sequences: int, tokens: int) -> Rows:
    """Read rows from a file, by its ending.

    ``.json`` and ``.npy``: token ids (n,), or (N,T) where each row is a document of its own.
    ``.npz``: recorded inputs: every array whose name begins with ``input_ids``, (T,) or (B,T);
    ``sequence_lengths`` (B,) beside them cuts their padding off; states and logits are not read,
    for rows begin in the initial state. Anything else is UTF-8 text for the bundle's tokenizer.

    Args:
        path: the file.
        bundle: the model that it is for: its vocabulary and its tokenizer.
        sequences: rows wanted; fewer where the file holds no more.
        tokens: T wanted; less where shorter windows use more of short documents.

    Raises:
        SsmExportError: ``BAD_CALIBRATION`` for a file that is missing, empty, too short, not UTF-8,
            or whose numbers are no ids of this vocabulary; ``NO_TOKENIZER`` or ``MISSING_PACKAGE``
            for text that cannot be tokenized; ``BAD_OPTION`` for a number below 1.
    """
    file = Path(path)
    _check_wanted(sequences, tokens)
    if not file.is_file():
        problem = "it is a folder" if file.is_dir() else "there is no such file"
        raise _bad(problem, file, "give a text file, or ids in a .json, .npy or .npz file")
    if not file.stat().st_size:
        raise _bad("it is empty", file, _enough(sequences, tokens))
    size = vocabulary(bundle.manifest)
    if file.suffix in (".json", ".npy", ".npz"):
        documents = [Document(_checked(ids, file)) for ids in _id_arrays(file)]
        why = "the ids were made with another vocabulary"
    else:
        documents = read_text(file, bundle, sequences, tokens)
        why = "the tokenizer of the bundle is not this model's"
    for document in documents:
        _check_vocabulary(document.ids, size, file, why)
    return _cut(documents, sequences, tokens, file)


def split_rows(rows: Rows, evaluation_share: float) -> tuple[Rows, Rows]:
    """Split rows in two that share none: (calibration, evaluation).

    The evaluation rows are the last ones, so they are from the end of the data; at least one row,
    and all but one at most.

    Raises:
        SsmExportError: ``BAD_OPTION`` for a share that is not between 0 and 1;
            ``BAD_CALIBRATION`` where there is one row only.
    """
    if not 0 < evaluation_share < 1:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the share of evaluation data is {evaluation_share}",
            fix="give a number between 0 and 1, such as 0.25",
        )
    count = len(rows.ids)
    if count < 2:
        raise SsmExportError(
            errors.BAD_CALIBRATION,
            f"{rows.source} gives {count} sequence, which cannot serve calibration and evaluation",
            fix="ask for 2 sequences or more, or give a longer file",
        )
    last = min(max(round(count * evaluation_share), 1), count - 1)
    border = count - last

    def part(rows_of: slice, name: str) -> Rows:
        sizes = None if rows.row_bytes is None else rows.row_bytes[rows_of]
        return Rows.of(rows.ids[rows_of], f"{rows.source} ({name} of {count} sequences)", sizes)

    return part(slice(border), f"first {border}"), part(slice(border, None), f"last {last}")


def generated_rows(
    bundle: Bundle,
    sequences: int,
    tokens: int,
    seed: int = 0,
    progress: Progress = SILENT,
    *,
    runner: str | Runner = "onnxruntime",
) -> Rows:
    """Let the model write rows itself: tokens drawn from its own probabilities (temperature 1).

    The first token of each row is any of the vocabulary, all alike; the rows run in one batch.
    ``p(token t) = softmax(logits(tokens before t))``, drawn as argmax(logits + Gumbel noise).
    Such text is all that a model without data has (Liu et al. 2023, LLM-QAT); what it measures is
    loss on what the model would say, so reports have to tell: ``source`` does.

    Raises:
        SsmExportError: ``BAD_OPTION`` for a number below 1, ``RUNNER_FAILED`` where the logits are
            not finite, and whatever opening a runner raises.
    """
    _check_wanted(sequences, tokens)
    size = vocabulary(bundle.manifest)
    rng = np.random.default_rng(seed)
    ids = np.empty((sequences, tokens), dtype=np.int64)
    ids[:, 0] = rng.integers(0, size, sequences)
    bar = progress.task("the model writes calibration data", total=tokens)
    bar.advance()
    with opened(bundle, runner) as loaded:
        model = Recurrent(bundle, loaded)
        state = model.initial_state(sequences)
        for position in range(1, tokens):
            logits, state = model.step(ids[:, position - 1 : position], state)
            row = logits[:, -1].astype(np.float64)
            if not np.isfinite(row).all():
                raise SsmExportError(
                    errors.RUNNER_FAILED,
                    f"the model gives logits that are not finite at token {position}",
                    where=str(bundle.path),
                    fix="ssm-export verify BUNDLE",
                )
            ids[:, position] = (row + rng.gumbel(size=row.shape)).argmax(axis=1)
            bar.advance()
    return Rows.of(ids, f"written by the model itself (no file was given; seed {seed})")


def _bad(what: str, file: Path, fix: str, why: str = "") -> SsmExportError:
    return SsmExportError(errors.BAD_CALIBRATION, what, where=str(file), why=why, fix=fix)


def _enough(sequences: int, tokens: int) -> str:
    rows, short = min(sequences, 2), min(tokens, SHORTEST)
    return (
        f"give {sequences} × {tokens} = {sequences * tokens} tokens or more; "
        f"the least that will do is {rows} × {short} = {rows * short}"
    )


def _check_wanted(sequences: int, tokens: int) -> None:
    if sequences < 1 or tokens < 2:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"{sequences} sequences of {tokens} tokens are asked for",
            fix="ask for 1 sequence or more, of 2 tokens or more",
        )


def _id_arrays(file: Path) -> Iterator[np.ndarray]:
    """The documents of a file of ids, each (n,), as they are stored."""
    try:
        if file.suffix == ".npz":
            yield from _recorded(file)
            return
        if file.suffix == ".npy":
            held: Any = np.load(file, mmap_mode="r")
        else:
            held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError) as error:  # JSON and Unicode errors are ValueErrors
        problem = " ".join(str(error).split())
        raise _bad(f"it cannot be read: {problem}", file, "write the file again") from error
    if isinstance(held, dict):
        held = held.get(INPUT_IDS)
    if isinstance(held, list) and held and all(isinstance(row, list) for row in held):
        yield from (_array(row, file) for row in held)
    elif isinstance(held, (list, np.ndarray)):
        yield from _rows_of(held if isinstance(held, np.ndarray) else _array(held, file), file)
    else:
        raise _bad("it holds no list of ids", file, 'write [1, 2, 3] or {"input_ids": [[1, 2]]}')


def _array(values: list[Any], file: Path) -> np.ndarray:
    try:
        array = np.array(values)
    except (ValueError, OverflowError) as error:
        raise _bad("it mixes ids with lists", file, "give [1, 2, 3] or [[1, 2], [3]]") from error
    if array.ndim != 1:
        raise _bad("it holds lists in lists of lists", file, "give [1, 2, 3] or [[1, 2], [3]]")
    return array


def _recorded(file: Path) -> Iterator[np.ndarray]:
    import zipfile

    try:
        loaded = np.load(file)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a .npy file under another name")
        with loaded as arrays:
            names = [name for name in arrays.files if name.startswith(INPUT_IDS)]
            if not names:
                raise _bad(
                    f"it has no array '{INPUT_IDS}', only {', '.join(arrays.files) or 'none'}",
                    file,
                    f"numpy.savez(file, {INPUT_IDS}=ids) with ids (N,T)",
                )
            for name in names:
                rows = list(_rows_of(arrays[name], file))
                lengths = name.replace(INPUT_IDS, LENGTHS, 1)
                if lengths in arrays.files:
                    ends = _checked(arrays[lengths].ravel(), file)
                    if len(ends) != len(rows):
                        raise _bad(
                            f"'{lengths}' has {len(ends)} lengths for {len(rows)} rows of '{name}'",
                            file,
                            "record both from one call",
                        )
                    for number, (row, end) in enumerate(zip(rows, ends, strict=True)):
                        if not 0 <= int(end) <= len(row):
                            raise _bad(
                                f"'{lengths}' gives row {number} of '{name}' a length of "
                                f"{int(end)}, it has {len(row)} tokens",
                                file,
                                "record both from one call",
                            )
                    rows = [row[: int(end)] for row, end in zip(rows, ends, strict=True)]
                yield from rows
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error


def _rows_of(held: np.ndarray, file: Path) -> Iterator[np.ndarray]:
    if held.ndim not in (1, 2):
        shape = "×".join(map(str, held.shape)) or "a single number"
        raise _bad(f"its ids are {shape}", file, "give ids (n,) or (N,T)")
    yield from [held] if held.ndim == 1 else held


def _checked(ids: np.ndarray, file: Path) -> np.ndarray:
    """Ids as int64; whole numbers written as floats are taken."""
    if ids.size and (ids.dtype.kind not in "iuf"):
        items = ids.tolist()
        found = next((item for item in items if not isinstance(item, (int, float))), items[0])
        raise _bad(f"it holds {found!r}, which is no token id", file, "give whole numbers")
    if ids.dtype.kind == "f":
        for start in range(0, len(ids), _PIECE):
            piece = ids[start : start + _PIECE]
            wrong = np.flatnonzero(~np.isfinite(piece) | (piece != np.trunc(piece)))
            if wrong.size:
                at = start + int(wrong[0])
                shown = "NaN" if np.isnan(ids[at]) else f"{ids[at]:g}"
                raise _bad(
                    f"it holds {shown} at position {at}, which is no token id",
                    file,
                    "give whole numbers; recorded activations cannot be calibrated with",
                )
    return ids


def _check_vocabulary(ids: np.ndarray, size: int, file: Path, why: str) -> None:
    for start in range(0, len(ids), _PIECE):
        piece = ids[start : start + _PIECE]
        wrong = np.flatnonzero((piece < 0) | (piece >= size))
        if wrong.size:
            at = int(wrong[0])
            raise _bad(
                f"it has the id {int(piece[at])} at position {start + at}, the vocabulary of the "
                f"model has V = {size}",
                file,
                "give ids or text of this model",
                why,
            )


def _cut(documents: Sequence[Document], sequences: int, tokens: int, file: Path) -> Rows:
    """Windows of one length, spread evenly over all documents."""
    lengths = np.array([len(document.ids) for document in documents], dtype=np.int64)
    length = _window(lengths, sequences, tokens)
    if length == 0:
        total = int(lengths.sum())
        held = f"{total} tokens" if len(documents) == 1 else f"{total} in {len(lengths)} documents"
        raise _bad(f"it is too short: {held}", file, _enough(sequences, tokens))
    slots = np.cumsum(lengths // length)
    count = min(sequences, int(slots[-1]))
    chosen = np.arange(count) * (int(slots[-1]) - 1) // max(count - 1, 1)
    owners = np.searchsorted(slots, chosen, side="right")
    starts = (chosen - (slots - lengths // length)[owners]) * length
    rows = [
        (documents[owner], slice(start, start + length))
        for owner, start in zip(owners.tolist(), starts.tolist(), strict=True)
    ]
    ids = np.stack([document.ids[part].astype(np.int64) for document, part in rows])
    spans = [
        document.begins[part.stop] - document.begins[part.start]
        for document, part in rows
        if document.begins is not None
    ]
    return Rows.of(ids, str(file), np.array(spans) if spans else None)


def _window(lengths: np.ndarray, sequences: int, tokens: int) -> int:
    """The length of windows that uses the most tokens, at most ``tokens``; 0 where none will do."""
    if not len(lengths):
        return 0
    rows, short = min(sequences, 2), min(tokens, SHORTEST)
    wanted = {tokens, int(lengths.max()) // rows, *np.unique(lengths).tolist()}
    best, most = 0, 0
    for length in sorted(item for item in wanted if short <= item <= tokens):
        windows = int((lengths // length).sum())
        used = min(windows, sequences) * length
        if windows >= rows and used >= most:
            best, most = length, used
    return best
