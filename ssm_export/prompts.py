"""What a session is given to read: token ids, checked, and padded where rows differ in length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.errors import SsmExportError
from ssm_export.verification.truth import vocabulary

Ids = np.ndarray | Sequence[Sequence[int]]


def checked(input_ids: Ids, size: int) -> np.ndarray:
    """Token ids as (B,T) int64.

    Args:
        input_ids: rows of equal length.
        size: V of the model.

    Raises:
        SsmExportError: ``EMPTY_PROMPT`` where there are none, ``BAD_OPTION`` where they are no
            integers of two axes, or outside the vocabulary.
    """
    ids = np.asarray(input_ids)
    if not ids.size:
        raise no_tokens(f"the ids have shape {ids.shape}: there is no token in them")
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the ids are {ids.dtype} of shape {ids.shape}, not integers of (B,T)",
            fix="give one row of token ids for each text, such as [[5, 17, 3]]",
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"token {low if low < 0 else high} is not of this model, whose vocabulary ends at "
            f"{size - 1}",
            fix="give ids of this model's tokenizer",
        )
    return ids.astype(np.int64, copy=False)


def padded(
    input_ids: Ids, lengths: np.ndarray | Sequence[int] | None, bundle: Bundle
) -> tuple[np.ndarray, np.ndarray | None]:
    """Token ids (B,T) and how many of each row count, (B,), None where all do.

    Args:
        input_ids: an array, or lists, which may differ in length and are padded to the right.
        lengths: (B,), or None.
        bundle: whose graphs take lengths or do not.

    Raises:
        SsmExportError: as :func:`checked`, and ``BAD_OPTION`` for lengths that the bundle does not
            take or that are not those of the rows.
    """
    if lengths is None and not isinstance(input_ids, np.ndarray):
        counts = [len(row) for row in input_ids]
        if counts and min(counts) == 0:
            raise no_tokens(f"prompt {counts.index(0)} has no tokens")
        if len(set(counts)) > 1:
            longest = max(counts)
            input_ids = [[*row, *([0] * (longest - len(row)))] for row in input_ids]
            lengths = counts
    ids = checked(input_ids, vocabulary(bundle.manifest))
    if lengths is None:
        return ids, None
    if not bundle.manifest.ragged:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the rows have the lengths {list(lengths)}, and the bundle's graphs take none",
            where=str(bundle.path),
            fix="ssm-export export CHECKPOINT -o BUNDLE --ragged, or rows of equal lengths",
        )
    taken = np.asarray(lengths)
    tokens = ids.shape[1]
    if taken.shape != ids.shape[:1] or not np.issubdtype(taken.dtype, np.integer):
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the lengths are {taken.dtype} of shape {taken.shape} for {len(ids)} rows",
            fix="give one whole number for each row",
        )
    if taken.min() < 0 or taken.max() > tokens:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the lengths {taken.tolist()} are not all between 0 and {tokens}",
            fix="a row's length counts its tokens, which the padding follows",
        )
    return ids, taken


def no_tokens(what: str) -> SsmExportError:
    """The refusal of nothing to read."""
    return SsmExportError(
        errors.EMPTY_PROMPT, what, fix="give each row at least one token, or restore a state"
    )
