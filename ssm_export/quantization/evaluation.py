"""What a variant of a model loses against the float model: bits, divergence, agreement, noise.

All variants go through the layers side by side, and logits are compared a batch of positions at a
time, so no more is in memory than the residual streams and one batch of logits. Sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ssm_export.progress import SILENT, Progress
from ssm_export.quantization.stream import FLOAT, Edit, LayerStream

if TYPE_CHECKING:
    from ssm_export.engines.runner import Recurrent

STEPS: Final = "steps"
"""Name of the variant that a step graph is, beside ``float``."""
_STATE_BYTES: Final = 1 << 30
"""Rows decode together while their states take no more than this."""
_LOGIT_BYTES: Final = 256 << 20
"""Logits of a step graph are kept for so many tokens before they are compared."""
_PART: Final = 1 << 21
"""Logits that are widened to float64 at a time."""


@dataclass(frozen=True)
class Quality:
    """How well a model predicts the next token of held-out rows, and how it differs from float.

    Attributes:
        bits_per_token: mean cross entropy −log₂ p(next token).
        bits_per_byte: that over the bytes of text per token; None where the rows are no text.
        lost_bits_per_token, lost_bits_per_byte: those minus the float model's on the same rows.
        perplexity: 2^bits_per_token.
        kl_bits: mean of KL(float ‖ this) = Σ p·log₂(p/q) over the vocabulary, in bits per token.
        top1: share of positions at which the likeliest token is that of the float model.
        tokens: positions that were predicted; the last of each row has no next token.
        worst_kl_bits: the largest KL of one position.
        worst_row, worst_token: where that is.
    """

    bits_per_token: float
    bits_per_byte: float | None
    lost_bits_per_token: float
    lost_bits_per_byte: float | None
    perplexity: float
    kl_bits: float
    top1: float
    tokens: int
    worst_kl_bits: float
    worst_row: int
    worst_token: int

    def as_json(self) -> dict[str, Any]:
        """A JSON object; a number that is not finite is null."""
        return {name: json_number(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Evaluation:
    """Every variant of one walk.

    Attributes:
        quality: variant to its quality; ``float`` is among them.
        snr_db: variant to the signal-to-noise ratio 10·log₁₀(Σ float² / Σ (float − variant)²) after
            the embedding, after each layer (both of the residual stream), and of the logits: L+2
            numbers, infinite where nothing differs.
    """

    quality: Mapping[str, Quality]
    snr_db: Mapping[str, tuple[float, ...]]

    def as_json(self) -> dict[str, Any]:
        """A JSON object; an infinite ratio is null."""
        return {
            "quality": {name: quality.as_json() for name, quality in self.quality.items()},
            "snr_db": {name: [json_number(v) for v in line] for name, line in self.snr_db.items()},
        }


@dataclass
class _Noise:
    """Sums for a signal-to-noise ratio."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, signal: np.ndarray, other: np.ndarray) -> None:
        for at in _parts(signal):
            wide = signal[at].astype(np.float64)
            self.signal += float(np.vdot(wide, wide))
            if other is not signal:
                wide -= other[at]
                self.noise += float(np.vdot(wide, wide))

    @property
    def decibel(self) -> float:
        if self.noise == 0.0:
            return math.inf
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(10.0 * np.log10(np.divide(self.signal, self.noise)))


@dataclass
class _Sums:
    """What positions of one variant add up to."""

    entropy: float = 0.0
    divergence: float = 0.0
    agreed: int = 0
    tokens: int = 0
    worst: float = -1.0
    at: int = 0
    noise: _Noise = field(default_factory=_Noise)

    def quality(self, columns: int, bytes_per_token: float | None, float_entropy: float) -> Quality:
        bits = self.entropy / self.tokens
        lost = (self.entropy - float_entropy) / self.tokens
        with np.errstate(over="ignore"):
            perplexity = float(np.exp2(bits))
        return Quality(
            bits_per_token=bits,
            bits_per_byte=None if bytes_per_token is None else bits / bytes_per_token,
            lost_bits_per_token=lost,
            lost_bits_per_byte=None if bytes_per_token is None else lost / bytes_per_token,
            perplexity=perplexity,
            kl_bits=self.divergence / self.tokens,
            top1=self.agreed / self.tokens,
            tokens=self.tokens,
            worst_kl_bits=self.worst,
            worst_row=self.at // columns,
            worst_token=self.at % columns,
        )


class _Scores:
    """Compares logits of variants at positions of rows, a batch at a time.

    Args:
        rows: (N,T) token ids; position r·T+t predicts ``rows[r, t+1]``.
        names: of the variants, without ``float``.
    """

    def __init__(self, rows: np.ndarray, names: Sequence[str]) -> None:
        self.rows = rows
        self.sums = {name: _Sums() for name in (FLOAT, *names)}

    def add(self, positions: np.ndarray, logits: Mapping[str, np.ndarray]) -> None:
        """Add positions (n,) with the logits (n,V) of each variant."""
        columns = self.rows.shape[1]
        inside = positions % columns < columns - 1
        step = max(1, _PART // logits[FLOAT].shape[-1])
        for start in range(0, len(positions), step):
            part = slice(start, start + step)
            keep = inside[part]
            if keep.any():
                chosen = {name: array[part][keep] for name, array in logits.items()}
                self._add(positions[part][keep], chosen)

    def _add(self, positions: np.ndarray, logits: Mapping[str, np.ndarray]) -> None:
        columns = self.rows.shape[1]
        targets = self.rows[positions // columns, positions % columns + 1]
        float_log = _log2_softmax(logits[FLOAT])
        float_p = np.exp2(float_log)
        best = logits[FLOAT].argmax(axis=-1)
        for name, sums in self.sums.items():
            log = float_log if name == FLOAT else _log2_softmax(logits[name])
            sums.entropy -= float(np.take_along_axis(log, targets[:, None], axis=1).sum())
            sums.agreed += int((logits[name].argmax(axis=-1) == best).sum())
            sums.tokens += len(positions)
            sums.noise.add(logits[FLOAT], logits[name])
            with np.errstate(invalid="ignore"):  # no probability times an infinite distance
                terms = float_p * (float_log - log)
            terms = np.where(float_p > 0.0, terms, 0.0).sum(axis=-1)
            sums.divergence += float(terms.sum())
            found = terms.argmax()  # a NaN counts as the largest
            if not terms[found] <= sums.worst:
                sums.worst, sums.at = float(terms[found]), int(positions[found])

    def quality(self, bytes_per_token: float | None) -> dict[str, Quality]:
        """The quality of every variant."""
        base = self.sums[FLOAT].entropy
        return {
            name: sums.quality(self.rows.shape[1], bytes_per_token, base)
            for name, sums in self.sums.items()
        }


def evaluate(
    stream: LayerStream,
    edits: Mapping[str, Edit],
    bytes_per_token: float | None,
    *,
    what: str = "evaluating",
) -> Evaluation:
    """Run variants and the float model over the rows of a stream, side by side in one walk.

    Args:
        stream: the float model on rows (N,T), T at least 2.
        edits: variant to what it changes; none may be called ``float``.
        bytes_per_token: bytes of text per token of the rows; None where they are no text.
        what: what the progress bar is called.
    """
    ratios: dict[str, list[float]] = {name: [] for name in (FLOAT, *edits)}
    hidden: Mapping[str, np.ndarray] = {}
    for stage in stream.walk(edits, what=what):
        hidden = stage.hidden
        for name, line in ratios.items():
            noise = _Noise()
            if hidden[name] is not hidden[FLOAT]:
                noise.add(hidden[FLOAT], hidden[name])
            line.append(noise.decibel)
    scores = _Scores(stream.rows, list(edits))
    for part, logits in stream.head(hidden, edits):
        scores.add(np.arange(part.start, part.stop), logits)
    for name, line in ratios.items():
        line.append(scores.sums[name].noise.decibel)
    return Evaluation(
        scores.quality(bytes_per_token), {name: tuple(line) for name, line in ratios.items()}
    )


def evaluate_steps(
    model: Recurrent,
    rows: np.ndarray,
    stream: LayerStream,
    bytes_per_token: float | None,
    *,
    progress: Progress = SILENT,
) -> Quality:
    """What the step graph that a bundle ships does in a runner, token by token.

    Args:
        model: the bundle with its runner; rows go in as its batch, each from the initial state.
        rows: (N,T) int64 token ids, T at least 2.
        stream: of the float bundle; its rows are not used.
        bytes_per_token: bytes of text per token of the rows; None where they are no text.
        progress: shows one step per token.
    """
    own = LayerStream(stream.bundle, rows, progress=progress)
    hidden = np.empty(0)
    for stage in own.walk(what="float model"):
        hidden = stage.hidden[FLOAT]
    columns = rows.shape[1]
    scores = _Scores(rows, [STEPS])
    per_row = 2 * sum(spec.bytes_per_row for spec in model.states)  # before and after a step
    together = min(len(rows), max(1, _STATE_BYTES // max(1, per_row)))
    task = progress.task("step graph", -(-len(rows) // together) * (columns - 1))
    for first in range(0, len(rows), together):
        batch = slice(first, min(first + together, len(rows)))
        state = model.initial_state(batch.stop - first)
        for times in _blocks(
            columns - 1, (batch.stop - first) * 4 * own.bundle.manifest.sizes["V"]
        ):
            made = []
            for time in times:
                logits, state = model.step(rows[batch, time : time + 1], state)
                made.append(np.asarray(logits[:, -1], np.float32))
                task.advance()
            ids = np.arange(batch.start, batch.stop)[:, None] * columns + np.asarray(times)
            steps = np.stack(made, axis=1).reshape(ids.size, -1)
            tail = {FLOAT: hidden[batch, times.start : times.stop]}
            for part, found in own.head(tail):
                scores.add(ids.reshape(-1)[part], {FLOAT: found[FLOAT], STEPS: steps[part]})
    return scores.quality(bytes_per_token)[STEPS]


def _blocks(count: int, bytes_each: int) -> Iterator[range]:
    """``range(count)`` in pieces whose logits fit the budget."""
    step = max(1, _LOGIT_BYTES // bytes_each)
    for start in range(0, count, step):
        yield range(start, min(start + step, count))


def _parts(array: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis that are small enough to widen."""
    step = max(1, _PART // max(1, array[:1].size))
    for start in range(0, len(array), step):
        yield slice(start, start + step)


def _log2_softmax(logits: np.ndarray) -> np.ndarray:
    """log₂ of the softmax over the last axis, float64."""
    with np.errstate(invalid="ignore"):
        wide = (logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)) / math.log(2.0)
        wide -= np.log2(np.exp2(wide).sum(axis=-1, keepdims=True))
    return wide


def json_number(value: Any) -> Any:
    """The value, or None where it is a float that is not finite, which JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
