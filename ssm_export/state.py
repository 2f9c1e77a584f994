"""The state of a session as a value: forked, selected, saved, loaded, and tied to its model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ssm_export import errors, state_file
from ssm_export.bundle import Bundle, Manifest
from ssm_export.engines.runner import Arrays, state_type
from ssm_export.errors import SsmExportError

LOGITS: Final = "logits"
TOKENS: Final = "tokens"
_ALIGNMENT: Final = 64
_STATE: Final = ("name_in", "kind", "layer", "shape", "dtype", "layout", "initial_value")


@dataclass(frozen=True)
class Owner:
    """The model that a state is of, whatever its graphs; see :mod:`ssm_export.state_file`."""

    family: str
    weights_sha256: str
    scheme_sha256: str
    states_sha256: str

    @classmethod
    def of(cls, manifest: Manifest) -> Owner:
        """The owner that a bundle's manifest describes."""
        quantization = manifest.quantization
        scheme = [quantization.get("weights"), quantization.get("activations")]
        return cls(
            manifest.family,
            manifest.weights.sha256,
            _hash(scheme) if quantization else "",
            _hash([[getattr(state, name) for name in _STATE] for state in manifest.states]),
        )

    def __str__(self) -> str:
        kind = f", quantized as {self.scheme_sha256[:12]}" if self.scheme_sha256 else ""
        return (
            f"{self.family} with weights {self.weights_sha256[:12]}{kind} "
            f"and states {self.states_sha256[:12]}"
        )


@dataclass(frozen=True, eq=False)
class State:
    """Everything a model knows of what it has read, for B rows. Its size never grows.

    Made by :attr:`Session.state` and taken by :meth:`Session.restore`. Forks and selections share
    their arrays, which are read-only: rows are copied when a session takes them.

    Attributes:
        owner: the model that it is of.
        stored: ``past_*`` name to (S, …) of S rows.
        logits: (S,V) after the last token; None before the first.
        tokens: (S,) int64, how many tokens each has read.
        picks: which of the S stored rows each of the B rows is.
    """

    owner: Owner
    stored: Mapping[str, np.ndarray]
    logits: np.ndarray | None
    tokens: np.ndarray
    picks: tuple[int, ...]

    def __post_init__(self) -> None:
        for array in (*self.stored.values(), self.tokens, self.logits):
            if array is not None:
                array.flags.writeable = False

    @property
    def rows(self) -> int:
        """B."""
        return len(self.picks)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of the states of one row."""
        return sum(array[:1].nbytes for array in self.stored.values())

    def arrays(self) -> Arrays:
        """The ``past_*`` arrays, (B, …), read-only; copies unless the rows are stored in a row."""
        if self._span() is not None:
            return {name: self._picked(array) for name, array in self.stored.items()}
        made = _gathered(self.stored, self.picks)
        for array in made.values():
            array.flags.writeable = False
        return made

    def last_logits(self) -> np.ndarray | None:
        """(B,V): the logits after each row's last token, which the next token is chosen from."""
        return None if self.logits is None else self._picked(self.logits)

    def tokens_read(self) -> np.ndarray:
        """(B,) int64: how many tokens each row has read."""
        return self._picked(self.tokens)

    def fork(self, rows: int) -> State:
        """One row as ``rows`` rows that go on independently; they are copied when restored.

        Raises:
            SsmExportError: ``BAD_OPTION`` for a state of several rows, or for no rows.
        """
        if self.rows != 1 or rows < 1:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"a state of {self.rows} rows cannot be forked into {rows}",
                fix="fork one row into 1 or more: state.select([0]).fork(4)",
            )
        return self.select([0] * rows)

    def select(self, rows: Sequence[int]) -> State:
        """The rows of these numbers, in this order; one may be taken several times."""
        chosen = [int(row) for row in rows]
        if not chosen or not all(0 <= row < self.rows for row in chosen):
            raise SsmExportError(
                errors.BAD_OPTION,
                f"rows {chosen} are not all there, the state has rows 0 to {self.rows - 1}",
                fix="name at least one row that is there",
            )
        picks = tuple(self.picks[row] for row in chosen)
        return State(self.owner, self.stored, self.logits, self.tokens, picks)

    def replaced(self, rows: Mapping[int, State]) -> State:
        """A copy in which some rows, by number, are those of states of one row each."""
        made = _gathered(self.stored, self.picks)
        logits, tokens = self.last_logits(), self.tokens_read().copy()
        logits = None if logits is None else logits.copy()
        for row, state in rows.items():
            for name, array in state.arrays().items():
                made[name][row] = array[0]
            tokens[row] = state.tokens_read()[0]
            last = state.last_logits()
            if logits is not None and last is not None:
                logits[row] = last[0]
        return State(self.owner, made, logits, tokens, tuple(range(self.rows)))

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the state into a file, atomically; an older state there is replaced.

        Raises:
            SsmExportError: ``OUTPUT_EXISTS`` where the file is something else, ``NO_SUCH_PATH``
                for a folder that is not there, ``DISK_FULL``.
        """
        used = sorted(set(self.picks))
        tensors = {**self.stored, TOKENS: self.tokens}
        if self.logits is not None:
            tensors[LOGITS] = self.logits
        if len(used) < len(self.tokens):
            tensors = {name: array[used] for name, array in tensors.items()}
        rows = json.dumps([used.index(pick) for pick in self.picks])
        state_file.write(Path(file), {**asdict(self.owner), "rows": rows}, tensors)

    @classmethod
    def load(cls, file: str | os.PathLike[str], bundle: Bundle | str | os.PathLike[str]) -> State:
        """Map a file that :meth:`save` wrote; it may be replaced, but not changed, while in use.

        Args:
            file: the file.
            bundle: a bundle of the model that the state is of, or its folder.

        Raises:
            SsmExportError: ``NO_SUCH_PATH``, ``BAD_STATE_FILE`` for a file that is damaged or no
                state, ``NEWER_SCHEMA``, or ``STATE_MISMATCH`` for the state of another model.
        """
        path = Path(file)
        manifest = (bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)).manifest
        metadata, tensors = state_file.read(path)
        try:
            owner = Owner(*(metadata[name] for name in Owner.__dataclass_fields__))
            if owner != Owner.of(manifest):
                raise mismatch(owner, Owner.of(manifest), str(path))
            logits, tokens = tensors.pop(LOGITS, None), tensors.pop(TOKENS)
            picks = tuple(int(row) for row in json.loads(metadata["rows"]))
            _check_shapes(manifest, tensors, logits, tokens, picks)
        except (KeyError, TypeError, ValueError) as error:
            raise state_file.unreadable(path, str(error)) from error
        return cls(owner, tensors, logits, tokens, picks)

    def _span(self) -> slice | None:
        """Where the rows lie, one after the other and in their order; None where they do not."""
        first, end = self.picks[0], self.picks[0] + len(self.picks)
        return slice(first, end) if self.picks == tuple(range(first, end)) else None

    def _picked(self, array: np.ndarray) -> np.ndarray:
        span = self._span()
        if span is not None:
            return array[span]
        made = array[list(self.picks)]
        made.flags.writeable = False
        return made


def mismatch(theirs: Owner, ours: Owner, where: str) -> SsmExportError:
    """The refusal of a state of another model, naming both."""
    return SsmExportError(
        errors.STATE_MISMATCH,
        f"the state is of {theirs}, the bundle is {ours}",
        where=where,
        why="a state holds numbers that only the weights that made them can read",
        fix="use the bundle that the state was saved with, or read the prompt again with this one",
    )


def _gathered(stored: Mapping[str, np.ndarray], picks: Sequence[int]) -> Arrays:
    """Copies of rows of every array, all in one new block of memory.

    One block, because the system gives memory of more than 4 MB in huge pages (numpy asks for
    them). An array each would take thousands of page faults, which cost more than the copying.
    """
    places: dict[str, int] = {}
    size = 0
    for name, array in stored.items():
        places[name] = size
        size += -(-len(picks) * array[:1].nbytes // _ALIGNMENT) * _ALIGNMENT
    block = np.empty(size, np.uint8)
    made: Arrays = {}
    for name, array in stored.items():
        shape = (len(picks), *array.shape[1:])
        made[name] = np.ndarray(shape, array.dtype, block, places[name])
        # Any other mode would go through a buffer; State has checked its rows.
        np.take(array, picks, axis=0, out=made[name], mode="clip")
    return made


def _check_shapes(
    manifest: Manifest,
    states: Arrays,
    logits: np.ndarray | None,
    tokens: np.ndarray,
    picks: tuple[int, ...],
) -> None:
    """``ValueError`` where the tensors are not those of the bundle's states."""
    stored = len(tokens)
    for spec in manifest.states:
        shape = tuple(size if isinstance(size, int) else stored for size in spec.shape)
        got = states[spec.name_in]
        if got.shape != shape or got.dtype != state_type(spec):
            raise ValueError(f"'{spec.name_in}' is {got.dtype} {got.shape}")
    if len(states) != len(manifest.states):
        raise ValueError(f"it has {len(states)} states, not {len(manifest.states)}")
    if tokens.dtype != np.int64 or (logits is not None and len(logits) != stored):
        raise ValueError("its tensors are of different numbers of rows")
    if not picks or not all(0 <= pick < stored for pick in picks):
        raise ValueError(f"its rows {picks} are not all there")


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
