"""GPTQ: rounds a weight so that its outputs on calibration data change least.

Frantar et al. 2022, arXiv 2210.17323. With weight W (K,N) and H = XᵀX/n (K,K) of the inputs X, the
mean squared change of the outputs is tr((W−Q)ᵀ·H·(W−Q)). Rows are rounded one after another, and
each takes over what the rounding of those before it spoiled. Written with H = R·Rᵀ, R upper
triangular, the row to be rounded is

    wᵢ + Σ_{j<i} (Rⱼᵢ/Rᵢᵢ)·(wⱼ − qⱼ),

the same numbers as the paper's updates through the Cholesky factor of H⁻¹ (which is R⁻¹), without
an inverse. The sum over rows of earlier batches is one matrix product per batch of 128 rows.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.progress import SILENT, Progress
from ssm_export.quantization.schemes import (
    SCHEMES,
    Clip,
    QuantizedTensor,
    quantize_weight,
)

Order = Literal["activations", "natural"]

_BATCH: Final = 128  # rows between two matrix products
_COLUMNS: Final = 2048  # outputs at a time: they do not touch each other


def gptq(
    weight: np.ndarray,
    hessian: np.ndarray,
    scheme: str,
    *,
    block: int = 0,
    scale_dtype: Any = np.float32,
    clip: Clip = "mse",
    damping: float = 0.01,
    order: Order = "activations",
    progress: Progress = SILENT,
    name: str = "",
) -> QuantizedTensor:
    """Rounds a weight (K inputs, N outputs) to int8 or int4 with error compensation.

    The search for scales weighs the squared error of input i by Rᵢᵢ², which is what the compensated
    error of that input costs. Each output column is at most as wrong in tr((W−Q)ᵀ·H·(W−Q)) as
    ``quantize_weight`` has it: where it would be worse, nearest rounding stays. An embedding or
    head (V,M) is rounded as its transpose: ``gptq(table.T, hessian, …).transposed()``.

    Args:
        weight: (K,N), any float type.
        hessian: (K,K) symmetric, float32 or float64: XᵀX/n; a factor does not matter.
        scheme: ``int8`` or ``int4``.
        block: inputs that share a scale, cut along K and fixed beforehand; 0 is one per output.
        scale_dtype: type that scales are stored in.
        clip: how scales are found, ``minmax`` or ``mse``.
        damping: share of the mean diagonal that is added to the diagonal; ×10 again and again where
            H is singular still.
        order: ``activations`` rounds inputs of large mean square first; ``natural`` from 0 to K−1.
        progress: where a bar of its rows is shown.
        name: of the tensor, for messages.

    Returns:
        A tensor with axis 1 per output, or axis 0 with blocks.

    Raises:
        SsmExportError: BAD_OPTION for other schemes, shapes and orders; else those of
            ``quantize_weight``; NOT_FINITE for H.
    """
    _check(weight, hessian, scheme, order, name)
    axis = 0 if block else 1
    nearest = quantize_weight(
        weight, scheme, axis=axis, block=block, scale_dtype=scale_dtype, clip=clip, name=name
    )
    factor, permutation, importance = _factor(hessian, damping, order, name)
    start = nearest
    if clip == "mse":
        start = quantize_weight(
            weight,
            scheme,
            axis=axis,
            block=block,
            scale_dtype=scale_dtype,
            clip=clip,
            importance=importance[:, None],
            name=name,
        )
    original = np.asarray(hessian, np.float32)
    rows, outputs = weight.shape
    values, scales = nearest.values.copy(), nearest.scale.copy().reshape(-1, outputs)
    task = progress.task(f"rounding {name}".rstrip(), rows * outputs)
    group = permutation // block if block else np.zeros(rows, np.int64)
    for first in range(0, outputs, _COLUMNS):
        columns = slice(first, min(first + _COLUMNS, outputs))
        wanted = np.ascontiguousarray(weight[:, columns], np.float32)
        scale = start.scale.reshape(-1, outputs)[:, columns]
        codes = _compensated(wanted[permutation], factor, scale, group, SCHEMES[scheme].maximum)
        candidate = np.empty_like(codes)
        candidate[permutation] = codes
        best, shared = values[:, columns], scales[:, columns]  # views, written to
        least = _loss(wanted, best, shared, original)
        for codes in (
            (start.values[:, columns], candidate) if start is not nearest else (candidate,)
        ):
            loss = _loss(wanted, codes, scale, original)
            better = loss < least
            least = np.where(better, loss, least)
            np.copyto(best, codes, where=better)
            np.copyto(shared, scale, where=better)
        task.advance(rows * (columns.stop - columns.start))
    return QuantizedTensor(
        scheme,
        values,
        scales.reshape(nearest.scale.shape),
        axis,
        block,
        nearest.global_scale,
        nearest.scale_bytes,
    )


def _check(weight: np.ndarray, hessian: np.ndarray, scheme: str, order: str, name: str) -> None:
    problem = fix = ""
    if scheme not in ("int8", "int4"):
        problem, fix = f"GPTQ rounds to int8 and int4, not to {scheme}", "take nearest rounding"
    elif order not in ("activations", "natural"):
        problem, fix = f"'{order}' is no order of GPTQ", "take 'activations' or 'natural'"
    elif weight.ndim != 2 or hessian.shape != (weight.shape[0],) * 2:
        problem = (
            f"the Hessian {list(hessian.shape)} does not fit the weight {list(weight.shape)}, "
            "whose first axis counts the inputs"
        )
        fix = "pass the weight as (inputs, outputs)"
    if problem:
        raise SsmExportError(errors.BAD_OPTION, problem, where=name, fix=fix)
    if not np.isfinite(hessian).all():
        raise SsmExportError(
            errors.NOT_FINITE,
            "the second moments of its inputs hold NaN or Inf",
            where=name,
            fix="calibrate with data on which the float model stays finite",
        )
    if np.diagonal(hessian).min(initial=0.0) < 0:
        raise _no_sum_of_squares(name)


def _no_sum_of_squares(name: str) -> SsmExportError:
    return SsmExportError(
        errors.BAD_OPTION,
        "the second moments of its inputs are no sums of squares",
        where=name,
        fix="calibrate again",
    )


def _factor(
    hessian: np.ndarray, damping: float, order: str, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rᵀ with rows over their diagonal, lower triangular float32; the order of inputs; Rᵢᵢ²/mean.

    The last one is in the natural order of the inputs, the first in the order of rounding.
    """
    diagonal = np.diagonal(hessian).astype(np.float64)
    live = diagonal > 0
    mean = float(diagonal[live].mean()) if live.any() else 1.0
    natural = np.arange(len(diagonal))
    permutation = natural if order == "natural" else np.argsort(-diagonal, kind="stable")
    # R upper triangular with R·Rᵀ = H is the lower factor of H with its axes reversed.
    backward = permutation[::-1]
    matrix = np.asarray(hessian[np.ix_(backward, backward)], np.float64)
    at = np.diag_indices_from(matrix)
    # An input that was always 0 is rounded to nearest: it owes nothing and takes nothing over.
    matrix[at] = np.where(live, diagonal, mean)[backward]
    damping = max(damping, 1e-9)
    added = 0.0
    while True:
        matrix[at] += damping * mean - added
        added = damping * mean
        try:
            lower = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            damping *= 10
            if damping > 1e6:
                raise _no_sum_of_squares(name) from None
            continue
        transposed = lower.T[::-1, ::-1]
        root = np.diagonal(transposed)
        importance = np.empty(len(root), np.float32)
        importance[permutation] = np.square(root) / mean
        return np.ascontiguousarray(transposed / root[:, None], np.float32), permutation, importance


def _compensated(
    wanted: np.ndarray, factor: np.ndarray, scale: np.ndarray, group: np.ndarray, maximum: float
) -> np.ndarray:
    """Codes int8 (K,n) of rows in the order in which they are rounded."""
    rows, outputs = wanted.shape
    error = np.empty((rows, outputs), np.float32)
    codes = np.empty((rows, outputs), np.int8)
    for start in range(0, rows, _BATCH):
        stop = min(start + _BATCH, rows)
        target = wanted[start:stop].copy()
        if start:
            target += factor[start:stop, :start] @ error[:start]
        for row in range(start, stop):
            goal = target[row - start]
            if row > start:
                goal += factor[row, start:row] @ error[start:row]
            own = scale[group[row]]
            code = np.rint(goal / own)
            np.clip(code, -maximum, maximum, out=code)
            codes[row] = code
            np.subtract(wanted[row], code * own, out=error[row])
    return codes


def _loss(
    wanted: np.ndarray, codes: np.ndarray, scale: np.ndarray, hessian: np.ndarray
) -> np.ndarray:
    """diag(Eᵀ·H·E), float64 (n,), for E = W − Q (K,n); scale (K/block or 1, n)."""
    error = wanted - codes * np.repeat(scale, len(wanted) // len(scale), axis=0)
    return np.einsum("kn,kn->n", error, hessian @ error, dtype=np.float64)
