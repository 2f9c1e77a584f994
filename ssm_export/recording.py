"""Parity vectors: prompts, and what the float64 torch model makes of them, as ``.npz`` files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from ssm_export.bundle import Bundle, ParityEntry
from ssm_export.progress import SILENT, Progress
from ssm_export.references.torch_model import TorchReference
from ssm_export.verification.gates import DRIFT_STEPS, GREEDY_TOKENS
from ssm_export.verification.measure import LOGITS
from ssm_export.verification.rounding import measure_floor

FULL_PARAMETERS: Final = 20_000_000
"""Up to this size ``auto`` records drift and greedy tokens too; beyond, they take minutes."""
_LARGE_PARAMETERS: Final = 500_000_000
_MOST_LOGITS: Final = 4_000_000
"""Above this many numbers a case keeps the logits of the last token only."""
_PROMPT: Final = "import os\n\n\ndef main():\n    "
_SEED: Final = 20260101
_Result = tuple[np.ndarray, dict[str, np.ndarray]]


def record_parity(
    bundle: Bundle,
    exact: TorchReference,
    rounded: TorchReference,
    extent: str,
    progress: Progress = SILENT,
) -> None:
    """Write the vectors of a bundle into ``parity/``, and both into its manifest.

    Args:
        bundle: the bundle under construction; its ``parity`` and ``rounding`` are filled in.
        exact: the float64 model.
        rounded: the same in the bundle's precision.
        extent: ``quick`` (prompts), ``full`` (drift and greedy tokens too) or ``auto``.
        progress: shows one step per vector.
    """
    parameters = bundle.manifest.sizes["parameters"]
    full = extent == "full" or (extent == "auto" and parameters <= FULL_PARAMETERS)
    rng = np.random.default_rng(_SEED)
    vocabulary = bundle.manifest.sizes["V"]
    rows, tokens = (1, 33) if parameters > _LARGE_PARAMETERS else (3, 67)
    prompt = rng.integers(0, vocabulary, (rows, tokens), dtype=np.int64)
    recorder = _Recorder(bundle, exact, rounded)
    work = [lambda: recorder.prefill(prompt)]
    if bundle.manifest.ragged:
        work.append(lambda: recorder.ragged(prompt))
    if full:
        long = rng.integers(0, vocabulary, (1, DRIFT_STEPS), dtype=np.int64)
        work.append(lambda: recorder.drift(long))
        start = _first_tokens(bundle.path, vocabulary, prompt[:1, :16])
        work.append(lambda: recorder.generate(start))
    task = progress.task("recording parity vectors", len(work))
    entries = []
    for record in work:
        entries.append(record())
        task.advance()
    bundle.manifest.parity = tuple(entries)
    bundle.manifest.rounding = recorder.rounding


class _Recorder:
    def __init__(self, bundle: Bundle, exact: TorchReference, rounded: TorchReference) -> None:
        self.bundle = bundle
        self.exact = exact
        self.rounded = rounded
        self.rounding: dict[str, dict[str, dict[str, float]]] = {}

    def prefill(self, ids: np.ndarray) -> ParityEntry:
        logits, states = self.exact.forward(ids)
        self._compare("prefill", self.rounded.forward(ids), (logits, states))
        if logits.size > _MOST_LOGITS:
            logits = logits[:, -1:]
        return self._save("prefill", ids, {"logits": logits, **states})

    def ragged(self, ids: np.ndarray) -> ParityEntry:
        rows, tokens = ids.shape
        lengths = np.array([max(1, tokens - 1 - 25 * row) for row in range(rows)], dtype=np.int32)
        logits, states = self.exact.forward(ids, lengths)
        return self._save("ragged", ids, {"sequence_lengths": lengths, "logits": logits, **states})

    def drift(self, ids: np.ndarray) -> ParityEntry:
        logits, states = self.exact.last_logits(ids)
        # An fp32 state differs in its last rounding only, so the tokens may go in at once.
        piece = None if self.bundle.manifest.state_dtype == "fp32" else 1
        rounded = self.rounded.last_logits(ids, piece=piece)
        self._compare("drift", rounded, (logits, states))
        return self._save("drift", ids, {"logits": logits, **states})

    def generate(self, ids: np.ndarray) -> ParityEntry:
        tokens, margins = self.exact.generate(ids, GREEDY_TOKENS)
        return self._save("generate", ids, {"tokens": tokens, "margin": margins})

    def _compare(self, kind: str, got: _Result, want: _Result) -> None:
        """Keep how far PyTorch in the bundle's precision is from float64."""
        pairs = {LOGITS: (got[0], want[0])}
        pairs |= {name: (got[1][name], value) for name, value in want[1].items()}
        self.rounding[kind] = {name: measure_floor(name, *pair) for name, pair in pairs.items()}

    def _save(self, kind: str, ids: np.ndarray, arrays: dict[str, np.ndarray]) -> ParityEntry:
        relative = f"parity/{kind}.npz"
        path = self.bundle.path / relative
        path.parent.mkdir(exist_ok=True)
        stored = {
            name: value.astype(np.float32) if value.dtype == np.float64 else value
            for name, value in arrays.items()
        }
        np.savez_compressed(path, input_ids=ids, **stored)  # type: ignore[arg-type]  # keywords are arrays
        entry = self.bundle.entry(relative)
        return ParityEntry(kind, kind, entry, batch=ids.shape[0], tokens=ids.shape[1])


def _first_tokens(folder: Path, vocabulary: int, otherwise: np.ndarray) -> np.ndarray:
    """Real text to continue where the bundle has a tokenizer: its margins are those of real use."""
    file = folder / "tokenizer.json"
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return otherwise
    if not file.is_file():
        return otherwise
    ids = np.array([Tokenizer.from_file(str(file)).encode(_PROMPT).ids], dtype=np.int64)
    return ids if ids.size and ids.max() < vocabulary else otherwise
