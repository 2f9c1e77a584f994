"""A session: a bundle in a runner, and the state of what it has read so far.

Decoding runs one graph token after token, and the states go out and in again. How depends on the
runner, as it was measured or as its runtime asks for:

* ONNX Runtime on the CPU is handed back its own output arrays, with no copy; binding them to two
  sets of buffers, or to one, was not faster (``tests/benchmarks/bench_session.py``).
* ONNX Runtime on CUDA and engines of standard operators alternate between two sets of buffers on
  the device; engines with our plugins read and write one (:mod:`ssm_export.engines`).
* TensorRT decodes under a CUDA graph, one for each of the two directions between the buffers.

Whatever the length of a stream, a session holds one state and one row of logits. What happens on
a GPU is written after its documentation and not run on one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines.runner import Recurrent, Runner, RunnerInfo
from ssm_export.errors import SsmExportError
from ssm_export.prompts import checked, no_tokens, padded
from ssm_export.sampling import Sampler, end_tokens
from ssm_export.state import Owner, State, mismatch
from ssm_export.verification.feeding import Stepper
from ssm_export.verification.opening import OneForm, opened
from ssm_export.verification.truth import vocabulary


class Session:
    """A bundle that reads and writes token after token, for B rows at once.

    Rows are what the first call brings; before it, every row is at the initial state.

    Args:
        bundle: an open bundle or its folder.
        runner: name of a runtime, or a runner that has loaded this bundle already and stays open;
            one that keeps states on its device serves one session at a time.
        lowering: which graphs; the bundle's default when None.
        threads: CPU threads; the runtime's choice when None.
        cuda_graph: whether TensorRT decodes under a CUDA graph.

    Raises:
        SsmExportError: whatever opening the bundle and the runner raises.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        *,
        runner: str | Runner = "onnxruntime",
        lowering: str | None = None,
        threads: int | None = None,
        cuda_graph: bool = True,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        self._vocabulary = vocabulary(manifest)
        self._owner = Owner.of(manifest)
        self._stack = ExitStack()
        loaded = self._stack.enter_context(
            opened(self.bundle, runner, lowering, threads, cuda_graph=cuda_graph)
        )
        self._model: Recurrent | None = Recurrent(self.bundle, loaded)
        self._stepper: Stepper | None = None
        self._logits: np.ndarray | None = None
        self._tokens = np.zeros(0, dtype=np.int64)
        self._chosen: np.ndarray | None = None
        self._ended: dict[int, State] = {}

    @property
    def info(self) -> RunnerInfo:
        """The runner: its name, versions, device and lowering."""
        return self._open().runner.info

    @property
    def rows(self) -> int:
        """B; 0 before the first call."""
        return len(self._tokens)

    @property
    def cuda_graph(self) -> bool | None:
        """Whether decoding has run under a CUDA graph; None where the runner has none."""
        found: bool | None = getattr(self._open().runner, "cuda_graph", None)
        return found

    @property
    def logits(self) -> np.ndarray | None:
        """(B,V): the logits after each row's last token; None before the first."""
        self._settle()
        return self._logits

    @property
    def state(self) -> State:
        """What has been read so far, as a value that later calls do not change.

        Raises:
            SsmExportError: ``BAD_OPTION`` for a session that has no rows yet.
        """
        self._settle()
        return self._snapshot()

    def restore(self, state: State) -> None:
        """Go on from a state, with as many rows as it has.

        Raises:
            SsmExportError: ``STATE_MISMATCH`` for a state of another model.
        """
        model = self._open()
        if state.owner != self._owner:
            raise mismatch(state.owner, self._owner, str(self.bundle.path))
        self._forget()
        self._stepper = Stepper(model, state.arrays())
        self._logits = state.last_logits()
        self._tokens = state.tokens_read().copy()

    def reset(self, batch: int | None = None) -> None:
        """Forget everything: the initial state for ``batch`` rows, or for what comes next."""
        self._open()
        if batch is not None and batch < 1:
            raise SsmExportError(
                errors.BAD_OPTION, f"a batch of {batch} rows", fix="give 1 or more"
            )
        self._forget()
        self._stepper, self._logits, self._tokens = None, None, np.zeros(0, dtype=np.int64)
        if batch is not None:
            self._begin(batch)

    def prefill(
        self,
        input_ids: np.ndarray | Sequence[Sequence[int]],
        lengths: np.ndarray | Sequence[int] | None = None,
    ) -> np.ndarray:
        """Read tokens, from where the session stands.

        Args:
            input_ids: (B,T) integers; rows of several lengths where they are lists and the bundle
                is ragged.
            lengths: (B,) how many tokens of each row count; all when None, none where 0. Ragged
                bundles only.

        Returns:
            logits (B,1,V) of each row's last token, or (B,T,V) of a bundle that gives all.

        Raises:
            SsmExportError: ``EMPTY_PROMPT``, ``BAD_OPTION`` for ids outside the vocabulary, other
                rows than the session has, or lengths that the bundle does not take.
        """
        self._settle()
        ids, counts = padded(input_ids, lengths, self.bundle)
        stepper = self._rows_of(ids)
        silent = None if counts is None else counts == 0
        if silent is not None and silent.any() and self._logits is None:
            raise no_tokens(f"row {int(silent.argmax())} has no tokens yet and is given none")
        logits = stepper.prefill(ids, counts)
        if counts is None:
            self._logits = logits[:, -1].copy()  # the caller may change what it is given
            self._tokens += ids.shape[1]
            return logits
        # Graphs that give the logits of every position give them of the padding too.
        last = np.maximum(counts - 1, 0) if logits.shape[1] > 1 else np.zeros_like(counts)
        picked = logits[np.arange(len(ids)), last]
        assert silent is not None
        before = picked if self._logits is None else self._logits
        self._logits = np.where(silent[:, None], before, picked)
        self._tokens += counts
        return logits

    def step(self, input_ids: np.ndarray) -> np.ndarray:
        """Read one token of each row: ``input_ids`` (B,1) → logits (B,1,V).

        Raises:
            SsmExportError: as :meth:`prefill`.
        """
        self._settle()
        ids = checked(input_ids, self._vocabulary)
        if ids.shape[1] != 1:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"a step was given {ids.shape[1]} tokens a row",
                fix="give (B,1) ids, or read them with prefill",
            )
        return self._stepped(ids)

    def choose(
        self,
        max_tokens: int,
        sampler: Sampler | None = None,
        ends: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int | None, ...]]:
        """Go on by tokens that are chosen from the logits, one of each row at a time.

        What is given has been read when the next call of the session is made, whether this
        iterator was used up or left; an end token is neither given nor read. A row that has ended
        keeps its state while the others go on.

        Args:
            max_tokens: of each row, at most.
            sampler: chooses; the likeliest token when None.
            ends: tokens that end a row.

        Yields:
            the token of each row, None where the row has ended.

        Raises:
            SsmExportError: ``EMPTY_PROMPT`` for a session that has read nothing.
        """
        self._settle()
        if self._logits is None:
            raise no_tokens("the session has read nothing, so there are no logits to choose from")
        picks = [(sampler or Sampler()).picker(row) for row in range(self.rows)]
        for _ in range(max_tokens):
            if self._chosen is not None:
                ids, self._chosen = self._chosen, None
                self._stepped(ids)
            column = np.zeros((self.rows, 1), dtype=np.int64)
            fresh: list[int] = []
            for row, pick in enumerate(picks):
                if row not in self._ended:
                    column[row] = pick(self._logits[row])
                    if int(column[row, 0]) in ends:
                        fresh.append(row)
            if len(fresh) + len(self._ended) == self.rows:
                return
            if fresh:
                now = self._snapshot()
                self._ended.update((row, now.select([row])) for row in fresh)
            self._chosen = column
            yield tuple(
                None if row in self._ended else int(token) for row, token in enumerate(column[:, 0])
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]] | np.ndarray | None = None,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        ends: frozenset[int] | None = None,
        stream: Callable[[tuple[int | None, ...]], None] | None = None,
    ) -> tuple[tuple[int, ...], ...]:
        """Continue every row.

        Args:
            prompts: token ids of each row, read first; of several lengths where the bundle is
                ragged. The session goes on from where it stands when None.
            max_tokens: tokens to add to a row at most.
            temperature, top_k, top_p: see :class:`~ssm_export.sampling.Sampler`.
            seed: of row 0; row r draws with seed + r, so forks of one state part.
            ends: tokens that end a row; those of the bundle when None.
            stream: called with the token of each row as they come, None where a row has ended.

        Returns:
            the tokens that were added to each row.

        Raises:
            SsmExportError: as :meth:`prefill` and :meth:`choose`.
        """
        sampler = Sampler(temperature, top_k, top_p, seed)
        if max_tokens < 1:
            raise SsmExportError(errors.BAD_OPTION, f"max_tokens is {max_tokens}", fix="1 or more")
        if prompts is not None:
            self.prefill(prompts)
        finish = end_tokens(self.bundle.path) if ends is None else ends
        made: list[list[int]] = [[] for _ in range(self.rows)]
        for tokens in self.choose(max_tokens, sampler, finish):
            for added, token in zip(made, tokens, strict=True):
                if token is not None:
                    added.append(token)
            if stream is not None:
                stream(tokens)
        return tuple(tuple(added) for added in made)

    def warm_up(self) -> None:
        """Run each graph once on one row: runtimes load a graph when it is first run.

        Nothing is run where only one graph fits into memory. The session begins anew after it.
        """
        model = self._open()
        if not isinstance(model.runner, OneForm):
            one = np.zeros((1, 1), dtype=np.int64)
            self.reset(1)
            self.prefill(one)
            self.step(one)
        self.reset()

    def close(self) -> None:
        """Free the runtime's memory, unless the runner was given. A state stays usable."""
        self._stack.close()
        self._model = self._stepper = None

    def __enter__(self) -> Session:  # noqa: PYI034  # Self came with Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> Recurrent:
        if self._model is None:
            raise SsmExportError(
                errors.BAD_OPTION,
                "the session is closed",
                where=str(self.bundle.path),
                fix="open another: ssm_export.Session(bundle)",
            )
        return self._model

    def _begin(self, batch: int) -> Stepper:
        model = self._open()
        self._stepper = Stepper(model, model.initial_state(batch))
        self._tokens = np.zeros(batch, dtype=np.int64)
        return self._stepper

    def _forget(self) -> None:
        self._chosen = None
        self._ended.clear()

    def _rows_of(self, ids: np.ndarray) -> Stepper:
        """The stepper, made where these are the first rows; refuses another number of rows."""
        if self._stepper is None:
            return self._begin(len(ids))
        if len(ids) != self.rows:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"{len(ids)} rows were given, the session has {self.rows}",
                fix="session.reset() begins anew; session.restore(session.state.fork(4)) makes "
                "four rows of one",
            )
        return self._stepper

    def _stepped(self, ids: np.ndarray) -> np.ndarray:
        logits = self._rows_of(ids)(ids)
        self._logits = logits[:, -1].copy()
        self._tokens += 1
        return logits

    def _settle(self) -> None:
        """Read what was chosen last, and give the rows that ended their state back."""
        self._open()
        if self._chosen is not None:
            ids, self._chosen = self._chosen, None
            self._stepped(ids)
        if self._ended and self._stepper is not None:
            whole = self._snapshot().replaced(self._ended)
            self._ended.clear()
            self._stepper.load(whole.arrays())
            self._logits, self._tokens = whole.last_logits(), whole.tokens_read().copy()

    def _snapshot(self) -> State:
        if self._stepper is None:
            raise SsmExportError(
                errors.BAD_OPTION,
                "the session has no rows yet, so it has no state",
                fix="prefill or step first, or session.reset(batch)",
            )
        rows = tuple(range(self.rows))
        stored = self._stepper.read()
        return State(self._owner, stored, self._logits, self._tokens.copy(), rows)
