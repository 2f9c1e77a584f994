"""Block Hadamard rotation: spreads outlier channels of an activation before it is quantized.

x·W = (x·R)·(Rᵀ·W) for an orthogonal R = diag(H, H, …, H). The weight takes Rᵀ once and for all; the
activation is multiplied by the small symmetric H block by block (Quamba, arXiv 2410.13229, does so
before ``out_proj``).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError


def hadamard(size: int) -> np.ndarray:
    """Sylvester's Hadamard matrix over √size, (size,size) float32: symmetric and its own inverse.

    Entry (i,j) = (−1)^popcount(i∧j)/√size. BAD_OPTION if ``size`` is no power of two.
    """
    return _hadamard(size).copy()


def block_size(channels: int, limit: int = 128) -> int:
    """The largest power of two up to ``limit`` that divides ``channels``; 1 rotates nothing."""
    size = 1
    while 2 * size <= limit and channels % (2 * size) == 0:
        size *= 2
    return size


def rotate(x: np.ndarray, block: int) -> np.ndarray:
    """x·diag(H, H, …) along the last axis, float32; x (…,D), D a multiple of ``block``."""
    matrix = _block_matrix(np.shape(x)[-1], block)
    x = np.asarray(x, np.float32)
    return (x.reshape(*x.shape[:-1], -1, block) @ matrix).reshape(x.shape)


def rotate_weight(weight: np.ndarray, block: int) -> np.ndarray:
    """diag(H, H, …)ᵀ·W for a weight (D inputs, M outputs), float32: undoes ``rotate`` of x."""
    matrix = _block_matrix(np.shape(weight)[0], block)
    weight = np.asarray(weight, np.float32)
    return (matrix.T @ weight.reshape(-1, block, weight.shape[1])).reshape(weight.shape)


def _block_matrix(channels: int, block: int) -> np.ndarray:
    if block < 1 or channels % block:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"rotation blocks of {block} do not divide {channels} channels",
            fix=f"take blocks of {block_size(channels)}",
        )
    return _hadamard(block)


@lru_cache(maxsize=16)
def _hadamard(size: int) -> np.ndarray:
    if size < 1 or size & (size - 1):
        raise SsmExportError(
            errors.BAD_OPTION,
            f"there is no Hadamard matrix of size {size} here",
            fix="take a power of two",
        )
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    result = (matrix / np.sqrt(size)).astype(np.float32)
    result.flags.writeable = False
    return result
