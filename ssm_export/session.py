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
from ssm_export.sampling import Chooser, Sampler, end_tokens
from ssm_export.session_rows import Rows
from ssm_export.state import Owner, State, mismatch
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
        self._rows: Rows | None = None
        self._turn = 0
        """Counts what the session was given to go on from other than chosen tokens."""

    @property
    def info(self) -> RunnerInfo:
        """The runner: its name, versions, device and lowering."""
        return self._open().runner.info

    @property
    def rows(self) -> int:
        """B; 0 before the first call."""
        return 0 if self._rows is None else len(self._rows)

    @property
    def cuda_graph(self) -> bool | None:
        """Whether decoding has run under a CUDA graph; None where the runner has none."""
        found: bool | None = getattr(self._open().runner, "cuda_graph", None)
        return found

    @property
    def logits(self) -> np.ndarray | None:
        """(B,V): the logits after each row's last token; None before the first."""
        rows = self._settled()
        return None if rows is None else rows.logits

    @property
    def state(self) -> State:
        """What has been read so far, as a value that later calls do not change.

        Raises:
            SsmExportError: ``BAD_OPTION`` for a session that has no rows yet.
        """
        rows = self._settled()
        if rows is None:
            raise SsmExportError(
                errors.BAD_OPTION,
                "the session has no rows yet, so it has no state",
                fix="prefill or step first, or session.reset(batch)",
            )
        return rows.state()

    def restore(self, state: State) -> None:
        """Go on from a state, with as many rows as it has.

        Raises:
            SsmExportError: ``STATE_MISMATCH`` for a state of another model, ``BAD_OPTION`` for
                what is no state.
        """
        model = self._open()
        if not isinstance(state, State):
            raise SsmExportError(
                errors.BAD_OPTION,
                f"that is no State but of type {type(state).__name__}",
                fix="ssm_export.State.load(file, bundle) reads one from a file",
            )
        if state.owner != self._owner:
            raise mismatch(state.owner, self._owner, str(self.bundle.path))
        self._turn += 1
        self._rows = Rows(model, state)

    def reset(self, batch: int | None = None) -> None:
        """Forget everything: the initial state for ``batch`` rows, or for what comes next."""
        model = self._open()
        if batch is not None and batch < 1:
            raise SsmExportError(
                errors.BAD_OPTION, f"a batch of {batch} rows", fix="give 1 or more"
            )
        self._turn += 1
        self._rows = None if batch is None else Rows.initial(model, self._owner, batch)

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
        rows = self._settled()
        ids, counts = padded(input_ids, lengths, self.bundle)
        rows = self._taking(rows, ids)
        self._turn += 1
        logits = rows.prefill(ids, counts)
        self._rows = rows
        return logits

    def step(self, input_ids: np.ndarray) -> np.ndarray:
        """Read one token of each row: ``input_ids`` (B,1) → logits (B,1,V).

        Raises:
            SsmExportError: as :meth:`prefill`.
        """
        rows = self._settled()
        ids = checked(input_ids, self._vocabulary)
        if ids.shape[1] != 1:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"a step was given {ids.shape[1]} tokens a row",
                fix="give (B,1) ids, or read them with prefill",
            )
        rows = self._taking(rows, ids)
        self._turn += 1
        logits = rows.step(ids)
        self._rows = rows
        return logits

    def choose(
        self,
        max_tokens: int,
        sampler: Sampler | None = None,
        ends: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int | None, ...]]:
        """Go on by tokens that are chosen from the logits, one of each row at a time.

        What is given has been read when the next call of the session is made, whether this
        iterator was used up or left; an end token is neither given nor read. A row that has ended
        keeps its state while the others go on. State and logits may be read between tokens.

        Args:
            max_tokens: of each row, at most.
            sampler: chooses; the likeliest token when None.
            ends: tokens that end a row.

        Yields:
            the token of each row, None where the row has ended.

        Raises:
            SsmExportError: ``EMPTY_PROMPT`` for a session that has read nothing, ``BAD_OPTION``
                when it was restored, reset or given other tokens since the last token.
        """
        rows = self._settled()
        if rows is None or rows.logits is None:
            raise no_tokens("the session has read nothing, so there are no logits to choose from")
        self._turn += 1
        turn = self._turn
        chooser = Chooser(sampler or Sampler(), ends, rows.tokens)
        for _ in range(max_tokens):
            self._open()
            if self._turn != turn:
                raise SsmExportError(
                    errors.BAD_OPTION,
                    "the session was restored, reset or given other tokens while it was choosing",
                    why="the next token would not go on from the last",
                    fix="call session.choose again, it goes on from where the session is now",
                )
            rows.read_chosen()
            tokens = chooser(rows.logits)
            if len(chooser.ended) == len(tokens):
                return
            rows.choose(tokens)
            yield tokens

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
            seed: of row 0; row r draws with seed + r, so forks of one state part. What is drawn
                depends on how many tokens the row has read, so a state that was saved and
                restored goes on as if it had not been.
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
        self._model = self._rows = None

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

    def _settled(self) -> Rows | None:
        """The rows, after they have read what was chosen last; None before the first call."""
        self._open()
        if self._rows is not None:
            self._rows.settle()
        return self._rows

    def _taking(self, rows: Rows | None, ids: np.ndarray) -> Rows:
        """The rows that these tokens are for: new where there are none; refuses another number."""
        if rows is None:
            return Rows.initial(self._open(), self._owner, len(ids))
        if len(ids) != len(rows):
            raise SsmExportError(
                errors.BAD_OPTION,
                f"{len(ids)} rows were given, the session has {len(rows)}",
                fix="session.reset() begins anew; session.restore(session.state.fork(4)) makes "
                "four rows of one",
            )
        return rows
