"""Where the truth comes from: the bundle's recorded vectors, or a reference model on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from zipfile import BadZipFile

import numpy as np

from ssm_export import errors
from ssm_export.bundle import Bundle, Manifest, ParityEntry
from ssm_export.errors import SsmExportError
from ssm_export.verification.gates import DRIFT_STEPS, GREEDY_TOKENS
from ssm_export.verification.reference import Reference

PREFILL: Final = "prefill"
"""Kind of the recorded prompt."""
SIMULATED: Final = "simulated"
"""Kind of the same prompt in a simulation of the quantized model; float bundles have none."""
EXACT: Final = "exact"
"""Kind of the rounding that holds against that simulation where every code is computed with as it
is written."""
PROMPT: Final = (3, 67)
"""Rows and tokens of a prompt of ours, where the bundle records none: past a chunk of 64."""
MOST_LOGITS_BYTES: Final = 1 << 30
"""A reference gives the logits of every position; above this size it is not asked for them."""


class NotRun(Exception):  # noqa: N818  # it is an answer, not an error
    """A check that cannot be run here, with the reason in words. It never counts as passed."""


@dataclass(frozen=True)
class Case:
    """One prompt with its truth.

    Attributes:
        name: for reports.
        input_ids: (B,T) int64.
        logits: (B,T,V) of all positions or (B,1,V) of the last; None for greedy tokens.
        states: ``past_*`` name to the state after the prompt.
        lengths: (B,) each row's own length in a right-padded batch.
        tokens: (B,count) greedy continuation.
        margins: (B,count) top logit minus the second where each token was taken.
    """

    name: str
    input_ids: np.ndarray
    logits: np.ndarray | None = None
    states: Mapping[str, np.ndarray] = field(default_factory=dict)
    lengths: np.ndarray | None = None
    tokens: np.ndarray | None = None
    margins: np.ndarray | None = None


class Truth(Protocol):
    """Gives the case of a kind: ``prefill``, ``ragged``, ``drift`` or ``generate``."""

    name: str

    def case(self, kind: str) -> Case:
        """The case, or :class:`NotRun` with the reason why there is none."""
        ...


class Recorded:
    """The vectors that were recorded when the bundle was made. Needs no torch."""

    name = "parity"

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._cases: dict[str, Case] = {}

    def entry(self, kind: str) -> ParityEntry:
        """The longest recorded prompt of a kind."""
        found = [entry for entry in self._bundle.manifest.parity if entry.kind == kind]
        if not found:
            raise NotRun(f"the bundle records no '{kind}' vector")
        return max(found, key=lambda entry: entry.tokens)

    def case(self, kind: str) -> Case:
        if kind not in self._cases:
            entry = self.entry(kind)
            self._cases[kind] = self._load(entry)
        return self._cases[kind]

    def _load(self, entry: ParityEntry) -> Case:
        path = self._bundle.file(entry.file)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            states = {name: value for name, value in found.items() if name.startswith("past_")}
            return Case(
                name=entry.name,
                input_ids=found["input_ids"],
                logits=found.get("logits"),
                states=states,
                lengths=found.get("sequence_lengths"),
                tokens=found.get("tokens"),
                margins=found.get("margin"),
            )
        except (KeyError, ValueError, OSError, BadZipFile) as error:
            raise SsmExportError(
                errors.NOT_A_BUNDLE,
                f"the recorded vector '{entry.file.path}' cannot be read ({error})",
                where=str(self._bundle.path),
                fix="export again",
            ) from error


class Asked:
    """A reference model, asked for the recorded prompts, or for prompts of ours."""

    def __init__(self, bundle: Bundle, reference: Reference) -> None:
        self.name = reference.name
        self._manifest: Manifest = bundle.manifest
        self._recorded = Recorded(bundle)
        self._reference = reference
        self._cases: dict[str, Case] = {}

    def case(self, kind: str) -> Case:
        if kind not in self._cases:
            makers = {
                "prefill": self._prefill,
                "drift": self._drift,
                "ragged": self._ragged,
                "generate": self._generate,
            }
            self._cases[kind] = makers[kind]()
        return self._cases[kind]

    def _prompt(self, kind: str, rows: int, tokens: int) -> np.ndarray:
        try:
            return self._recorded.case(kind).input_ids
        except NotRun:
            rng = np.random.default_rng(0)
            return rng.integers(0, vocabulary(self._manifest), (rows, tokens))

    def _forward(self, name: str, input_ids: np.ndarray) -> Case:
        logits, states = self._reference.forward(input_ids)
        return Case(name, input_ids, logits, states)

    def _prefill(self) -> Case:
        return self._forward("prefill", self._prompt("prefill", *PROMPT))

    def _drift(self) -> Case:
        if DRIFT_STEPS * vocabulary(self._manifest) * 8 > MOST_LOGITS_BYTES:
            raise NotRun(f"the reference's logits of {DRIFT_STEPS} tokens are too big for memory")
        case = self._forward("drift", self._prompt("drift", 1, DRIFT_STEPS))
        assert case.logits is not None
        return Case("drift", case.input_ids, case.logits[:, -1:], case.states)

    def _ragged(self) -> Case:
        try:
            recorded = self._recorded.case("ragged")
            input_ids, lengths = recorded.input_ids, recorded.lengths
        except NotRun:
            input_ids, lengths = self._prompt("prefill", *PROMPT), None
        rows, tokens = input_ids.shape
        if lengths is None:
            lengths = np.maximum(tokens - 1 - np.arange(rows) * (tokens // 3), 1)
        logits = np.zeros((rows, tokens, vocabulary(self._manifest)))
        states: dict[str, list[np.ndarray]] = {}
        for row, length in enumerate(lengths):
            alone, after = self._reference.forward(input_ids[row : row + 1, :length])
            logits[row, :length] = alone[0]
            for name, value in after.items():
                states.setdefault(name, []).append(value)
        stacked = {name: np.concatenate(values) for name, values in states.items()}
        return Case("ragged", input_ids, logits, stacked, np.asarray(lengths))

    def _generate(self) -> Case:
        input_ids = self._prompt("generate", 1, 16)[:1]
        tokens, margins = self._reference.generate(input_ids, GREEDY_TOKENS)
        return Case("generate", input_ids, tokens=tokens, margins=margins)


def vocabulary(manifest: Manifest) -> int:
    """V, from the sizes of the manifest."""
    for key in ("V", "vocab_size", "vocabulary"):
        if key in manifest.sizes:
            return manifest.sizes[key]
    raise SsmExportError(
        errors.NOT_A_BUNDLE,
        f"the manifest does not say the size of the vocabulary, only {sorted(manifest.sizes)}",
        where="manifest.json",
        fix="export again",
    )
