"""The rows that one quantization is calibrated and judged on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import Bundle, disk_errors
from ssm_export.errors import SsmExportError
from ssm_export.progress import Progress
from ssm_export.quantization.calibration import FILE, UNREADABLE, Statistics
from ssm_export.quantization.data import Rows, generated_rows, read_rows, split_rows

if TYPE_CHECKING:
    from ssm_export.quantization.job import Job

ROWS: Final = "calibration/rows.npz"
HELD_OUT: Final = 16
"""Rows that quality is measured on, whatever the recipe, so that recipes can be compared."""
_WORK: Final = 2e13
"""Multiply-adds that calibration may take by default: minutes on two cores. Large models are
calibrated on fewer rows, and the report says so."""
_GENERATED_WORK: Final = 2e12
"""The same where the model has to write the data token by token first."""
_HELD_OUT_WORK: Final = 4e12
"""Multiply-adds of one model over the held-out rows, above which fewer of them are taken."""
_FEWEST: Final = 4
_SHARE: Final = 0.2
_STEP_TOKENS: Final = 128
_STEP_ROWS: Final = 8


@dataclass(frozen=True)
class Corpus:
    """Rows for both purposes.

    Attributes:
        calibration: what statistics are taken from.
        evaluation: what quality is measured on; never the same rows.
        statistics: taken earlier from the same rows and weights; None where there are none.
        notes: what differs from what was asked for.
    """

    calibration: Rows
    evaluation: Rows
    statistics: Statistics | None = None
    notes: tuple[str, ...] = ()

    def few_for_steps(self) -> np.ndarray:
        """The beginnings of a few held-out rows, for what runs token by token."""
        return self.evaluation.ids[:_STEP_ROWS, :_STEP_TOKENS]

    def save(self, folder: Path) -> None:
        """Store both in a bundle's folder."""
        path = folder / ROWS
        arrays: dict[str, np.ndarray] = {}
        for name, rows in (("calibration", self.calibration), ("evaluation", self.evaluation)):
            arrays[f"{name}_ids"] = rows.ids
            arrays[f"{name}_source"] = np.array(rows.source)
            if rows.row_bytes is not None:
                arrays[f"{name}_bytes"] = rows.row_bytes
        with disk_errors(folder):
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # keywords are arrays


def open_corpus(job: Job, progress: Progress) -> Corpus:
    """The rows that the options of a job ask for.

    Raises:
        SsmExportError: ``BAD_CALIBRATION`` for data that cannot be used.
    """
    options, bundle = job.options, job.source
    if not (options.calibration and Path(options.calibration).is_dir()):
        return _read(job, progress)
    corpus = _reused(Path(options.calibration), bundle)
    asked = [name for name in ("sequences", "tokens") if getattr(options, name) is not None]
    if asked:
        raise SsmExportError(
            errors.BAD_OPTION,
            "the rows of an earlier quantization are taken as they are",
            where=f"--{asked[0]} with --calibration {options.calibration}",
            fix=f"leave --{asked[0]} out, or give --calibration the text or ids themselves",
        )
    if not options.evaluation:
        return corpus
    held = _given(options.evaluation, bundle, corpus.calibration.ids.shape[1])
    return _apart(dataclasses.replace(corpus, evaluation=held))


def _apart(corpus: Corpus) -> Corpus:
    """The corpus; ``BAD_CALIBRATION`` where a row is in both parts."""
    seen = {row.tobytes() for row in corpus.calibration.ids}
    shared = sum(row.tobytes() in seen for row in corpus.evaluation.ids)
    if shared:
        raise SsmExportError(
            errors.BAD_CALIBRATION,
            f"{shared} of its {len(corpus.evaluation.ids)} rows are calibrated with too",
            where=f"--evaluation {corpus.evaluation.source}",
            why="quality on data that a model was fitted to says little",
            fix="leave --evaluation out: the end of the calibration data is held out",
        )
    return corpus


def _given(path: str, bundle: Bundle, tokens: int) -> Rows:
    """Held-out rows from a file of their own."""
    return read_rows(path, bundle, sequences=_held_out(bundle, tokens), tokens=tokens)


def _read(job: Job, progress: Progress) -> Corpus:
    options, bundle, wanted = job.options, job.source, job.recipe.calibration
    sequences, tokens = options.sequences or wanted.sequences, options.tokens or wanted.tokens
    limit = _WORK if options.calibration else _GENERATED_WORK
    parameters = bundle.manifest.sizes["parameters"]
    notes: tuple[str, ...] = ()
    if options.sequences is None and sequences * tokens * parameters > limit:
        fewer = max(_FEWEST, int(limit / (tokens * parameters)))
        if fewer < sequences:
            note = f"{fewer} rows of {tokens} tokens where the recipe has {sequences}, for time"
            notes = (f"{note}; --sequences {sequences} takes all",)
            sequences = fewer
    held_out = 0 if options.evaluation else _held_out(bundle, tokens)
    total = sequences + held_out
    if options.calibration is None:
        rows = generated_rows(bundle, total, tokens, progress=progress)
    else:
        rows = read_rows(options.calibration, bundle, sequences=total, tokens=tokens)
    if options.evaluation:
        held = _given(options.evaluation, bundle, rows.ids.shape[1])
        return _apart(Corpus(rows, held, notes=notes))
    # Of data that is short of what was asked for, calibration gets the larger share.
    share = held_out / total if len(rows.ids) == total else _SHARE
    return Corpus(*split_rows(rows, share), notes=notes)


def _held_out(bundle: Bundle, tokens: int) -> int:
    """How many rows of so many tokens quality is measured on."""
    one = tokens * bundle.manifest.sizes["parameters"]
    return max(2, min(HELD_OUT, int(_HELD_OUT_WORK / one)))


def _reused(folder: Path, bundle: Bundle) -> Corpus:
    """Rows of an earlier quantization, and its statistics where they are of the same weights."""
    path = folder / ROWS
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        parts = [
            Rows.of(
                arrays[f"{name}_ids"], str(arrays[f"{name}_source"]), arrays.get(f"{name}_bytes")
            )
            for name in ("calibration", "evaluation")
        ]
    except UNREADABLE as error:
        raise SsmExportError(
            errors.BAD_CALIBRATION,
            "the folder holds no rows of an earlier quantization",
            where=str(folder),
            fix="give a text file, ids in a .json, .npy or .npz file, or a bundle that "
            "ssm-export quantize made",
        ) from error
    size = bundle.manifest.sizes["V"]
    if max(int(rows.ids.max()) for rows in parts) >= size:
        raise SsmExportError(
            errors.BAD_CALIBRATION,
            f"its rows have ids beyond the vocabulary, V = {size}",
            where=str(path),
            why="they were made with another model",
            fix="give a bundle that was quantized from this model",
        )
    statistics = Statistics.load(folder / FILE) if (folder / FILE).is_file() else None
    if statistics is not None and (
        statistics.weights_sha256 != bundle.manifest.weights.sha256
        or statistics.rows_sha256 != parts[0].sha256
    ):
        statistics = None
    return Corpus(parts[0], parts[1], statistics)
