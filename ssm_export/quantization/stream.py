"""A model run layer by layer on many rows, several variants of it side by side.

Only one layer is loaded at a time, so a model of any depth runs in the memory of a layer, of the
hidden values of every row, and of one batch of activations. A variant is an edit of the pieces;
where it leaves a piece alone and comes in with the hidden values of the unedited model, nothing is
computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from ssm_export.bundle import Bundle
from ssm_export.lowering import lower
from ssm_export.progress import SILENT, Progress
from ssm_export.quantization.pieces import Piece, Pieces, with_bodies

if TYPE_CHECKING:
    import onnxruntime

Edit = Callable[[ir.Model], bool]
"""Changes a piece in place and says whether it did."""
Tap = Callable[[str, np.ndarray], None]
"""Is given a value's name and its content (B,T,…) float32, a batch of rows at a time."""

FLOAT: Final = "float"
"""Name of the variant without an edit; it is always there."""
_BATCH_BYTES: Final = 64 << 20
"""Rows go together until the widest activation of a layer has about this size."""
_WIDENING: Final = 4
"""The widest activation of a layer is about so many times the residual stream."""


@dataclass(frozen=True)
class Stage:
    """What is known after a piece.

    Attributes:
        piece: the piece that was run.
        hidden: variant to its residual stream (N,T,M) float32 after the piece. Variants that do not
            differ from the float model share its array.
    """

    piece: Piece
    hidden: Mapping[str, np.ndarray]


class LayerStream:
    """Runs the prefill graph of a float bundle on rows of tokens, each row from the initial state.

    Args:
        bundle: the float bundle.
        rows: (N,T) int64 token ids.
        progress: shows one step per piece.
    """

    def __init__(self, bundle: Bundle, rows: np.ndarray, *, progress: Progress = SILENT) -> None:
        self.bundle = bundle
        self.rows = rows
        self.progress = progress
        self.pieces = Pieces(ir.load(bundle.graph_path("prefill", "canonical")), bundle.manifest)
        width = 4 * _WIDENING * bundle.manifest.sizes["M"]
        self.batch_rows = max(1, min(len(rows), _BATCH_BYTES // (width * rows.shape[1])))

    def walk(
        self,
        edits: Mapping[str, Edit] | None = None,
        *,
        taps: Callable[[Piece], Sequence[str]] = lambda piece: (),
        on_tap: Tap = lambda name, array: None,
        tapped: str = FLOAT,
        what: str = "layers",
    ) -> Iterator[Stage]:
        """Run every piece but the head.

        Args:
            edits: variant to its edit; the float model runs too, as ``float``.
            taps: piece to the names of values in it that are wanted of a variant.
            on_tap: given them, batch by batch.
            tapped: the variant that they are wanted of.
            what: what the progress bar is called.

        Yields:
            one stage per piece: the embedding (index -1), then every layer.
        """
        hidden: dict[str, np.ndarray] = {FLOAT: self.rows}
        hidden |= dict.fromkeys(edits or {}, self.rows)
        task = self.progress.task(what, len(self.pieces.all) - 1)
        for piece in self.pieces.all[:-1]:
            inside = {tapped: tuple(taps(piece))}
            hidden = self._run(piece, hidden, edits or {}, inside, on_tap)
            task.advance()
            yield Stage(piece, hidden)

    def head(
        self, hidden: Mapping[str, np.ndarray], edits: Mapping[str, Edit] | None = None
    ) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Logits of every position, a batch of positions at a time.

        Args:
            hidden: the last stage's.
            edits: as for :meth:`walk`.

        Yields:
            the positions, as a slice of all N·T in row-major order, and variant to logits (n,V).
        """
        piece = self.pieces.all[-1]
        sessions = {FLOAT: self._session(piece, None)[0]}
        for name, edit in (edits or {}).items():
            sessions[name] = self._session(piece, edit)[0] or sessions[FLOAT]
        flat = {name: value.reshape(-1, 1, value.shape[-1]) for name, value in hidden.items()}
        count = len(flat[FLOAT])
        step = max(1, _BATCH_BYTES // (4 * self.bundle.manifest.sizes["V"]))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            yield (
                part,
                {
                    name: self._call(sessions[name], piece, value[part], [piece.result])[0][:, 0]
                    for name, value in flat.items()
                },
            )

    def _run(
        self,
        piece: Piece,
        hidden: Mapping[str, np.ndarray],
        edits: Mapping[str, Edit],
        taps: Mapping[str, tuple[str, ...]],
        on_tap: Tap,
    ) -> dict[str, np.ndarray]:
        base, _ = self._session(piece, None, taps.get(FLOAT, ()))
        made = {FLOAT: self._rows(base, piece, hidden[FLOAT], taps.get(FLOAT, ()), on_tap)}
        for name, edit in edits.items():
            inside = taps.get(name, ())
            session, changed = self._session(piece, edit, inside)
            if changed or inside:
                made[name] = self._rows(session, piece, hidden[name], inside, on_tap)
            elif hidden[name] is hidden[FLOAT]:
                made[name] = made[FLOAT]
            else:
                made[name] = self._rows(base, piece, hidden[name], (), on_tap)
        return made

    def _rows(
        self,
        session: onnxruntime.InferenceSession,
        piece: Piece,
        source: np.ndarray,
        taps: tuple[str, ...],
        on_tap: Tap,
    ) -> np.ndarray:
        parts = []
        for start in range(0, len(source), self.batch_rows):
            batch = source[start : start + self.batch_rows]
            first, *others = self._call(session, piece, batch, [piece.result, *taps])
            parts.append(first)
            for name, array in zip(taps, others, strict=True):
                on_tap(name, array)
        return np.concatenate(parts)

    def _session(
        self, piece: Piece, edit: Edit | None, taps: Sequence[str] = ()
    ) -> tuple[Any, bool]:
        """A session of a piece, and whether the edit changed it.

        None where it did not and nothing is tapped: the float model's serves.
        """
        model = self.pieces.cut(piece, taps)
        changed = edit is not None and edit(model)
        if edit is not None and not changed and not taps:
            return None, False
        return open_session(lower(with_bodies(model), "ort").model), changed

    def _call(
        self, session: Any, piece: Piece, source: np.ndarray, outputs: Sequence[str]
    ) -> list[np.ndarray]:
        rows, tokens = source.shape[:2]
        feeds: dict[str, np.ndarray] = {piece.source: source}
        for port in session.get_inputs():
            if port.name == "sequence_lengths":
                feeds[port.name] = np.full(rows, tokens, np.int32)
            elif port.name != piece.source:
                shape = [size if isinstance(size, int) else rows for size in port.shape]
                feeds[port.name] = np.zeros(shape, np.float32)
        found: list[np.ndarray] = session.run(list(outputs), feeds)
        return found


def open_session(model: ir.Model) -> onnxruntime.InferenceSession:
    """ONNX Runtime's CPU session of a model that lies in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = ir.to_proto(_inside(model)).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _inside(model: ir.Model) -> ir.Model:
    """Read external and lazy weights into the model."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)):
            value.const_value = ir.tensor(tensor.numpy(), name=value.name)
    return model
