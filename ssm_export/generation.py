"""Generate: a prompt through the prefill graph, then token after token by the step graph."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines.runner import Recurrent, Runner
from ssm_export.errors import SsmExportError, missing_package
from ssm_export.verification import feeding
from ssm_export.verification.opening import OneForm, opened
from ssm_export.verification.truth import vocabulary

TOKENIZER: Final = "tokenizer.json"
_UNFINISHED: Final = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of bytes that are no whole character yet."""


@dataclass(frozen=True)
class Timings:
    """Milliseconds, and the speed of decoding."""

    load_ms: float
    prefill_ms: float
    decode_ms: float
    tokens_per_s: float


@dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes:
        text: the new text, without the prompt; empty for a bundle without a tokenizer.
        tokens: the new token ids.
        prompt_tokens: ids of the prompt.
        finish: ``length``, ``eos`` or ``stop``.
        timings: how long it took.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    finish: str
    runner: str
    lowering: str
    timings: Timings

    def as_json(self) -> dict[str, Any]:
        """The members of the ``ssm-export/generate@1`` document."""
        return {"ok": True, **asdict(self)}


class Tokenizer(Protocol):
    """The part of ``tokenizers.Tokenizer`` that is used."""

    def encode(self, sequence: str) -> Any: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Sampler:
    """Picks a token from logits.

    Attributes:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_k: only so many of the likeliest; 0 for all.
        top_p: only the likeliest that have this probability together.
        seed: of the random numbers.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, right in (
            ("--temperature", self.temperature, self.temperature >= 0),
            ("--top-k", self.top_k, self.top_k >= 0),
            ("--top-p", self.top_p, 0 < self.top_p <= 1),
        ):
            if not right:
                raise SsmExportError(
                    errors.BAD_OPTION,
                    f"{option} is {value}",
                    fix="temperature and top-k are at least 0, top-p is above 0 and at most 1",
                )

    def picker(self) -> Callable[[np.ndarray], int]:
        """A function logits (V,) → token, with random numbers of its own."""
        rng = np.random.default_rng(self.seed)
        return lambda logits: self._pick(logits.astype(np.float64), rng)

    def _pick(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        scaled = (logits[order] - logits[order[0]]) / self.temperature
        probabilities = np.exp(scaled)
        probabilities /= probabilities.sum()
        before = np.cumsum(probabilities) - probabilities
        kept = before < self.top_p  # the first is always kept
        probabilities = np.where(kept, probabilities, 0.0)
        return int(rng.choice(order, p=probabilities / probabilities.sum()))


class TextStream:
    """Turns tokens into text as they come: whole characters only, and nothing of a stop string.

    Args:
        tokenizer: decodes ids.
        stop: strings that end the text; they are not part of it.
        emit: called with each new piece of text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        emit: Callable[[str], None] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._emit = emit
        self._tokens: list[int] = []
        self._start = 0
        self._read = 0
        self._held = ""
        self.text = ""

    def push(self, token: int) -> bool:
        """Add a token; True when a stop string is complete."""
        self._tokens.append(token)
        fresh = self._decoded(self._start, None)
        if fresh.endswith(_UNFINISHED):
            return False
        seen = self._decoded(self._start, self._read)
        if len(fresh) <= len(seen):
            return False
        self._start, self._read = self._read, len(self._tokens)
        return self._add(fresh[len(seen) :])

    def finish(self) -> None:
        """Give what was held back: the end of a text has no more to wait for."""
        fresh = self._decoded(self._start, None)
        seen = self._decoded(self._start, self._read)
        if not self._add(fresh[len(seen) :]):
            self._give(self._held)
            self._held = ""

    def _decoded(self, start: int, end: int | None) -> str:
        return self._tokenizer.decode(self._tokens[start:end]) if end != start else ""

    def _add(self, piece: str) -> bool:
        self._held += piece
        found = [at for at in (self._held.find(text) for text in self._stop) if at >= 0]
        if found:
            self._give(self._held[: min(found)])
            self._held = ""
            return True
        kept = max((_overlap(self._held, text) for text in self._stop), default=0)
        ready = len(self._held) - kept
        self._give(self._held[:ready])
        self._held = self._held[ready:]
        return False

    def _give(self, piece: str) -> None:
        if piece:
            self.text += piece
            if self._emit is not None:
                self._emit(piece)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may begin ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def generate(
    bundle: Bundle | str | os.PathLike[str],
    prompt: str | Sequence[int],
    *,
    runner: str | Runner = "onnxruntime",
    lowering: str | None = None,
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    stream: Callable[[str], None] | None = None,
    threads: int | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        bundle: an open bundle or its folder.
        prompt: text, which needs the bundle's tokenizer, or token ids, which need none.
        runner: name of a runtime, or a runner that has loaded this bundle already.
        lowering: which graphs; the bundle's default when None.
        max_tokens: tokens to add at most; fewer when the model ends the text.
        temperature, top_k, top_p, seed: see :class:`Sampler`.
        stop: strings that end the text and are left out of it.
        stream: called with each piece of text as it comes, whole characters only.
        threads: CPU threads; the runtime's choice when None.

    Raises:
        SsmExportError: ``EMPTY_PROMPT``, ``NO_TOKENIZER``, ``MISSING_PACKAGE`` for text without
            the package ``tokenizers``, ``BAD_OPTION`` for an id outside the vocabulary or a
            sampling option that makes no sense, and whatever opening a runner raises.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    if max_tokens < 1:
        raise SsmExportError(
            errors.BAD_OPTION, f"--max-tokens is {max_tokens}", fix="give 1 or more"
        )
    pick = Sampler(temperature, top_k, top_p, seed).picker()
    needs_text = isinstance(prompt, str) or bool(stop)
    tokenizer = load_tokenizer(bundle) if needs_text else _tokenizer_if_any(bundle)
    ids = _prompt_ids(bundle, prompt, tokenizer)
    text = TextStream(tokenizer, stop, stream) if tokenizer is not None else None
    ends = end_tokens(bundle.path)
    began = time.perf_counter()
    with opened(bundle, runner, lowering, threads) as loaded:
        model = Recurrent(bundle, loaded)
        if not isinstance(loaded, OneForm):
            _load_both(model, ids[:1])
        loaded_at = time.perf_counter()
        logits, state = feeding.prefill(model, np.array([ids], dtype=np.int64))
        first_at = time.perf_counter()
        step = feeding.Stepper(model, state)
        tokens: list[int] = []
        finish = "length"
        while True:
            token = pick(logits[0, -1])
            if token in ends:
                finish = "eos"
                break
            tokens.append(token)
            if text is not None and text.push(token):
                finish = "stop"
                break
            if len(tokens) == max_tokens:
                break
            logits = step(np.array([[token]], dtype=np.int64))
        done = time.perf_counter()
        if text is not None and finish != "stop":
            text.finish()
        info = loaded.info
    decode_s = done - first_at
    return Generation(
        text=text.text if text is not None else "",
        tokens=tuple(tokens),
        prompt_tokens=tuple(ids),
        finish=finish,
        runner=info.name,
        lowering=info.lowering,
        timings=Timings(
            load_ms=(loaded_at - began) * 1e3,
            prefill_ms=(first_at - loaded_at) * 1e3,
            decode_ms=decode_s * 1e3,
            tokens_per_s=len(tokens) / decode_s if decode_s > 0 else 0.0,
        ),
    )


def _load_both(model: Recurrent, ids: Sequence[int]) -> None:
    """Runtimes load a graph when it is first run; do it before the clock starts."""
    one = np.array([ids], dtype=np.int64)
    _, state = model.prefill(one)
    model.step(one, state)


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer: ``NO_TOKENIZER`` or ``MISSING_PACKAGE`` when it cannot be had."""
    path = bundle.path / TOKENIZER
    hint = "give the prompt as token ids: generate(bundle, [1, 2, 3])"
    if not path.is_file():
        raise SsmExportError(
            errors.NO_TOKENIZER, f"there is no {TOKENIZER}", where=str(bundle.path), fix=hint
        )
    try:
        import tokenizers
    except ImportError as error:
        raise missing_package("tokenizers", "export", "a prompt as text") from error
    try:
        loaded: Tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises Exception itself
        raise SsmExportError(
            errors.NO_TOKENIZER, f"it cannot be read: {error}", where=str(path), fix=hint
        ) from error
    return loaded


def end_tokens(folder: Path) -> frozenset[int]:
    """Ids that end a text: of generation_config.json where it names any, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        ids = found if isinstance(found, list) else [found]
        ends = frozenset(item for item in ids if isinstance(item, int))
        if ends:
            return ends
    return frozenset()


def _tokenizer_if_any(bundle: Bundle) -> Tokenizer | None:
    try:
        return load_tokenizer(bundle)
    except SsmExportError:
        return None


def _prompt_ids(
    bundle: Bundle, prompt: str | Sequence[int], tokenizer: Tokenizer | None
) -> list[int]:
    if isinstance(prompt, str):
        assert tokenizer is not None
        ids = [int(item) for item in tokenizer.encode(prompt).ids]
    else:
        ids = [int(item) for item in prompt]
    if not ids:
        raise SsmExportError(
            errors.EMPTY_PROMPT, "the prompt has no tokens", fix="give at least one character"
        )
    size = vocabulary(bundle.manifest)
    wrong = next((item for item in ids if not 0 <= item < size), None)
    if wrong is not None:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the prompt has token {wrong}, the vocabulary ends at {size - 1}",
            why="the tokenizer is not this model's" if isinstance(prompt, str) else "",
            fix="give ids of this model",
        )
    return ids
