"""Generate: text in and out of a session, with a saved state before and after where asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines.runner import Runner
from ssm_export.errors import SsmExportError, missing_package
from ssm_export.sampling import Sampler, end_tokens
from ssm_export.session import Session
from ssm_export.state import State
from ssm_export.state_file import check_destination
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
        timings: how long it took; reading a saved state is part of the prefill.
        earlier_tokens: how many tokens the state that it went on from had read.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    finish: str
    runner: str
    lowering: str
    timings: Timings
    earlier_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        """The members of the ``ssm-export/generate@1`` document."""
        return {"ok": True, **asdict(self)}


class Tokenizer(Protocol):
    """The part of ``tokenizers.Tokenizer`` that is used."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Any: ...

    def decode(self, ids: Sequence[int]) -> str: ...


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
    prompt: str | Sequence[int] = "",
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
    load_state: str | os.PathLike[str] | None = None,
    save_state: str | os.PathLike[str] | None = None,
) -> Generation:
    """Continue a prompt, or what a saved state has read.

    Args:
        bundle: an open bundle or its folder.
        prompt: text, which needs the bundle's tokenizer, or token ids, which need none. Nothing
            where a state is loaded and is to be continued as it is.
        runner: name of a runtime, or a runner that has loaded this bundle already.
        lowering: which graphs; the bundle's default when None.
        max_tokens: tokens to add at most; fewer when the model ends the text. 0, which only reads
            the prompt, where the state is saved.
        temperature, top_k, top_p, seed: see :class:`~ssm_export.sampling.Sampler`.
        stop: strings that end the text and are left out of it.
        stream: called with each piece of text as it comes, whole characters only.
        threads: CPU threads; the runtime's choice when None.
        load_state: a state of one row that the prompt goes on from.
        save_state: where to save what has been read when all is done: the prompt and the new
            tokens, without the end token.

    Raises:
        SsmExportError: ``EMPTY_PROMPT``, ``NO_TOKENIZER``, ``MISSING_PACKAGE`` for text without
            the package ``tokenizers``, ``BAD_OPTION`` for an id outside the vocabulary or a
            sampling option that makes no sense, what :meth:`State.load` and :meth:`State.save`
            raise, and whatever opening a runner raises.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    least = 0 if save_state is not None else 1
    if max_tokens < least:
        raise SsmExportError(
            errors.BAD_OPTION, f"--max-tokens is {max_tokens}", fix=f"give {least} or more"
        )
    sampler = Sampler(temperature, top_k, top_p, seed)
    if save_state is not None:
        check_destination(Path(save_state))
    needs_text = (isinstance(prompt, str) and bool(prompt)) or bool(stop)
    tokenizer = load_tokenizer(bundle) if needs_text else _tokenizer_if_any(bundle)
    ids = _prompt_ids(bundle, prompt, tokenizer, begun=load_state is not None)
    text = TextStream(tokenizer, stop, stream) if tokenizer is not None else None
    began = time.perf_counter()
    with Session(bundle, runner=runner, lowering=lowering, threads=threads) as session:
        session.warm_up()
        loaded_at = time.perf_counter()
        earlier = _restore(session, load_state) if load_state is not None else 0
        if ids:
            session.prefill([ids])
        first_at = time.perf_counter()
        tokens: list[int] = []
        finish = "length"
        for (token,) in session.choose(max_tokens, sampler, end_tokens(bundle.path)):
            assert token is not None  # the only row: the text is over when it has ended
            tokens.append(token)
            if text is not None and text.push(token):
                finish = "stop"
                break
        if finish != "stop" and len(tokens) < max_tokens:
            finish = "eos"
        done = time.perf_counter()
        if text is not None and finish != "stop":
            text.finish()
        if save_state is not None:
            session.state.save(save_state)
        info = session.info
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
        earlier_tokens=earlier,
    )


def _restore(session: Session, file: str | os.PathLike[str]) -> int:
    """Go on from a saved state of one row; how many tokens it has read."""
    state = State.load(file, session.bundle)
    if state.rows != 1:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the state has {state.rows} rows, and one text is continued",
            where=os.fspath(file),
            fix="save one of them: State.load(file, bundle).select([0]).save(other); or go on "
            "with all of them: ssm_export.Session(bundle).restore(state)",
        )
    session.restore(state)
    return int(state.tokens_read()[0])


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


def _tokenizer_if_any(bundle: Bundle) -> Tokenizer | None:
    try:
        return load_tokenizer(bundle)
    except SsmExportError:
        return None


def _prompt_ids(
    bundle: Bundle, prompt: str | Sequence[int], tokenizer: Tokenizer | None, *, begun: bool
) -> list[int]:
    """The prompt's ids; without the tokens that begin a text where it has ``begun`` already."""
    if not isinstance(prompt, str):
        ids = [int(item) for item in prompt]
    elif prompt and tokenizer is not None:
        encoded = tokenizer.encode(prompt, add_special_tokens=not begun)
        ids = [int(item) for item in encoded.ids]
    else:
        ids = []
    if not ids and not begun:
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
