"""How the scales of a quantized tensor lie over it, and the pieces that it is worked through in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

PIECE: Final = 1 << 17
"""Elements that are worked on at a time, so that float32 work buffers stay in the cache."""


class Layout:
    """How scales lie over a tensor: views in which they broadcast, and pieces to work in."""

    def __init__(self, shape: tuple[int, ...], axis: int | None, block: int) -> None:
        self.axis = 0 if axis is None else axis % len(shape)
        self.block = block
        self.original = tuple(shape)
        whole = axis is None
        if block:
            blocks = shape[self.axis] // block
            before, after = shape[: self.axis], shape[self.axis + 1 :]
            self.shape = (*before, blocks, block, *after)
            self.scale_shape = (*before, blocks, 1, *after)
            self.stored_shape: tuple[int, ...] = (*before, blocks, *after)
            self.reduced: tuple[int, ...] = (self.axis + 1,)
        else:
            self.shape = tuple(shape)
            shared = [1 if whole or at != self.axis else size for at, size in enumerate(shape)]
            self.scale_shape = tuple(shared)
            self.stored_shape = () if whole else (shape[self.axis],)
            self.reduced = tuple(at for at in range(len(shape)) if whole or at != self.axis)

    def cut(self, array: np.ndarray) -> np.ndarray:
        """A view of the tensor in which scales of ``scale_shape`` broadcast."""
        return np.asarray(array).reshape(self.shape)

    def pieces(self) -> Iterator[tuple[slice, slice]]:
        """Slices of the first axis of the view and of the scales that belong to them."""
        if not self.shape:
            yield slice(None), slice(None)
            return
        width = max(1, int(np.prod(self.shape[1:])))
        rows = max(1, PIECE // width)
        shared = self.scale_shape[0] == 1
        for start in range(0, self.shape[0], rows):
            piece = slice(start, min(start + rows, self.shape[0]))
            yield piece, slice(None) if shared else piece

    def place(self, index: int) -> str:
        """Which scale a flat index means, in words."""
        if not self.stored_shape:
            return "the tensor"
        where = tuple(int(at) for at in np.unravel_index(index, self.stored_shape))
        if self.block:
            return f"block {list(where)} of {self.block} along axis {self.axis}"
        return f"channel {where[0]} of axis {self.axis}"
