"""Tensors in one file beside the graphs that point into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ssm_export.bundle import disk_errors
from ssm_export.progress import SILENT, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

_PAGE: Final = 4096
_LINE: Final = 64


@dataclass(frozen=True)
class Stored:
    """A tensor that is to be written.

    Attributes:
        name: of the initializers that it is the content of.
        dtype: its ONNX type.
        shape: its sizes.
        read: gives its bytes (n,) uint8 as the file holds them; called once, and not kept.
    """

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        """Size in the file; two 4-bit values share a byte."""
        bits = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.bitwidth
        return -(-bits // 8)


def write_tensors(
    tensors: Iterable[Stored], path: Path, progress: Progress = SILENT
) -> dict[str, ir.ExternalTensor]:
    """Write tensors one after the other into one file.

    Args:
        tensors: in the order of the file. They begin at multiples of 64 bytes, large ones at pages.
        path: the file to make.
        progress: shows bytes.

    Returns:
        name to a tensor that points into the file.
    """
    import onnx_ir as ir

    wanted = list(tensors)
    task = progress.task("writing weights", sum(tensor.bytes for tensor in wanted))
    made: dict[str, ir.ExternalTensor] = {}
    with disk_errors(path.parent), path.open("wb") as stream:
        for tensor in wanted:
            offset = _aligned(stream.tell(), _PAGE if tensor.bytes >= _PAGE else _LINE)
            stream.seek(offset)
            content = tensor.read()
            assert content.nbytes == tensor.bytes, f"{tensor.name}: {content.nbytes} bytes"
            content.tofile(stream)
            del content
            made[tensor.name] = ir.ExternalTensor(
                path.name,
                offset,
                tensor.bytes,
                tensor.dtype,
                name=tensor.name,
                shape=ir.Shape(tensor.shape),
                base_dir=str(path.parent),
            )
            task.advance(tensor.bytes)
        stream.flush()
        os.fsync(stream.fileno())
    return made


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
