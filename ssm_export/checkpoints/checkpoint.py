"""A checkpoint that is open: its config, and its tensors by name, each read when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from ssm_export.progress import SILENT, Progress

if TYPE_CHECKING:
    from types import TracebackType

    import torch

Layout = Literal["transformers", "mamba_ssm"]

_BLOCK = 1 << 22


@dataclass(frozen=True)
class LazyTensor:
    """One tensor of a weights file that has not been read.

    Attributes:
        name: its name in transformers' spelling, such as ``backbone.layers.0.mixer.A_log``.
        shape: its axes, as stored.
        dtype: its type as torch spells it: ``float32``, ``bfloat16`` …
        where: the file it lies in.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    where: str
    reader: Callable[[], torch.Tensor] = field(repr=False, compare=False)

    def read(self) -> torch.Tensor:
        """Read this tensor and no other: ``shape`` and ``dtype`` as stored, contiguous, on the CPU.

        The memory belongs to the caller; reading twice gives two copies. ``CORRUPT_WEIGHTS`` when
        the file has become shorter since it was opened.
        """
        return self.reader()


@final
@dataclass
class Checkpoint:
    """An open checkpoint; close it, or use it in a ``with`` block.

    Attributes:
        path: the folder.
        layout: how the folder is written.
        model_type: the family, such as ``mamba2``; not yet known to be a supported one.
        config: the config under transformers' keys, whatever the layout. A checkpoint of the
            ``mamba_ssm`` layout also has ``unpadded_vocab_size``.
        tensors: every weight stored, by its transformers name. Whether ``lm_head.weight`` may be
            there for a model with tied embeddings is the family's to say (its config has the
            default): :func:`ssm_export.checkpoints.without_tied_head` takes it out.
        side_files: config and tokenizer files that a bundle copies.
        weights_files: the files that hold the weights, in order of their names.
    """

    path: Path
    layout: Layout
    model_type: str
    config: dict[str, Any]
    tensors: Mapping[str, LazyTensor]
    side_files: tuple[Path, ...]
    weights_files: tuple[Path, ...]
    closers: tuple[Callable[[], None], ...] = field(default=(), repr=False)

    def weights_sha256(self, progress: Progress = SILENT) -> str:
        """SHA-256 over the bytes of every weights file, one after the other in order."""
        total = sum(path.stat().st_size for path in self.weights_files)
        task = progress.task("hashing weights", total)
        digest = hashlib.sha256()
        for path in self.weights_files:
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
                    task.advance(len(block))
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the weights files. Tensors that were read stay valid."""
        for closer in self.closers:
            closer()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
