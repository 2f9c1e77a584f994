"""Quantized tensors in numpy: int8, int4, FP8, MXFP8 and NVFP4.

A code q stands for q·scale. A scale belongs to a whole tensor, to a channel, or to a block of
neighbours along one axis. Scales are rounded to the type that a file stores them in *before* codes
are chosen; integer and FP8 scales are then kept as float32 values, because every type in question
is a subset of float32. Large tensors are worked through in pieces of about a megabyte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.number_formats import (
    SCHEMES,
    Scheme,
    nearest_codes,
    round_trip,
    scheme_named,
)
from ssm_export.quantization.scale_layout import Layout
from ssm_export.quantization.scale_storage import (
    check_finite,
    check_normal,
    e4m3_multiple,
    rounded_scales,
)

__all__ = [
    "SCHEMES",
    "Clip",
    "QuantizedTensor",
    "Scheme",
    "fake_quantize",
    "largest_block",
    "quantize_weight",
    "scales_of",
    "with_scales",
]

Clip = Literal["minmax", "mse"]

_SHRINKS: Final = tuple(float(np.float32(1 - step / 32)) for step in range(17))  # 1 … 0.5


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes and scales of one tensor.

    Attributes:
        scheme: name of the format.
        values: codes in the shape of the original: int8 for int8 and int4 (−7…7), float8_e4m3fn for
            fp8 and mxfp8, float4_e2m1fn for nvfp4.
        scale: float32 for int8, int4 and fp8 (values that its stored type can hold exactly),
            float8_e8m0fnu for mxfp8, float8_e4m3fn for nvfp4. Shape () for a whole tensor, (C,)
            per channel; with blocks that of ``values`` with ``axis`` divided by ``block``.
        axis: the channel axis that ``scale`` runs along, or the axis that is cut into blocks.
        block: entries that share a scale along ``axis``; 0 per channel or tensor.
        global_scale: factor of all scales; other than 1 for nvfp4 only.
        scale_bytes: bytes of one scale in a file.
    """

    scheme: str
    values: np.ndarray
    scale: np.ndarray
    axis: int
    block: int = 0
    global_scale: float = 1.0
    scale_bytes: int = 4

    def dequantized(self) -> np.ndarray:
        """Codes times scales, float32, in the shape of ``values``."""
        result = np.empty(self.values.shape, np.float32)
        scale = np.asarray(self.scale, np.float32) * np.float32(self.global_scale)
        layout = Layout(self.values.shape, None if self.scale.ndim == 0 else self.axis, self.block)
        codes, target, shared = (
            layout.cut(self.values),
            layout.cut(result),
            scale.reshape(layout.scale_shape),
        )
        for piece, rows in layout.pieces():
            np.multiply(codes[piece].astype(np.float32), shared[rows], out=target[piece])
        return result

    def transposed(self) -> QuantizedTensor:
        """The transpose of a quantized matrix, with the same codes and scales; no copies."""
        return QuantizedTensor(
            self.scheme,
            self.values.T,
            self.scale.T,
            self.axis if self.scale.ndim == 0 else 1 - self.axis,
            self.block,
            self.global_scale,
            self.scale_bytes,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales in a file: two 4-bit codes share a byte."""
        codes = (self.values.size * SCHEMES[self.scheme].bits + 7) // 8
        second_level = 4 if self.scheme == "nvfp4" else 0
        return codes + self.scale.size * self.scale_bytes + second_level


def quantize_weight(
    weight: np.ndarray,
    scheme: str | Scheme,
    *,
    axis: int | None,
    block: int = 0,
    scale_dtype: Any = np.float32,
    clip: Clip = "minmax",
    importance: np.ndarray | None = None,
    name: str = "",
) -> QuantizedTensor:
    """Quantizes a constant: scales from its own values, then each value to the nearest code.

    Args:
        weight: any shape, any float type.
        scheme: the format or its name.
        axis: the channel axis, or with ``block`` the axis that is cut; None for one scale in all.
        block: entries that share a scale along ``axis``; 0 per channel. MXFP8 takes 32, NVFP4 16.
        scale_dtype: float32, float16 or ml_dtypes.bfloat16, the type that int and fp8 scales are
            stored in; mxfp8 and nvfp4 have types of their own.
        clip: ``minmax``, or ``mse``: the shrink factor in 1…0.5 of least squared error.
        importance: weight of each squared error in the search, broadcast against ``weight``; see
            ``scales_of``.
        name: of the tensor, for messages.

    Raises:
        SsmExportError: NOT_FINITE; SCALE_UNDERFLOW; BAD_OPTION for a block that cannot be.
    """
    scheme = scheme_named(scheme)
    scale = scales_of(
        weight, scheme, axis=axis, block=block, clip=clip, importance=importance, name=name
    )
    return with_scales(
        weight, scheme, scale, axis=axis, block=block, scale_dtype=scale_dtype, name=name
    )


def scales_of(
    weight: np.ndarray,
    scheme: str | Scheme,
    *,
    axis: int | None,
    block: int = 0,
    clip: Clip = "minmax",
    importance: np.ndarray | None = None,
    name: str = "",
) -> np.ndarray:
    """Scales amplitude/maximum, float32, in the shape of ``QuantizedTensor.scale``; 1 for zeros.

    ``mse`` tries 17 factors 1…0.5 of the amplitude for each scale and keeps the one of least summed
    squared error of rounding. ``importance`` (≥ 0, broadcast against ``weight``), such as the mean
    square of each input, weighs the errors. Errors as ``quantize_weight``.
    """
    scheme = scheme_named(scheme)
    layout = _layout(np.shape(weight), scheme, axis, block, name)
    cut = layout.cut(weight)
    amplitude = np.zeros(layout.scale_shape, np.float32)
    for piece, rows in layout.pieces():
        part = np.abs(np.asarray(cut[piece], np.float32)).max(
            axis=layout.reduced, keepdims=True, initial=0.0
        )
        amplitude[rows] = np.maximum(amplitude[rows], part)
    check_finite(amplitude, layout, name)
    scale = amplitude / np.float32(scheme.maximum)
    check_normal(scale, amplitude, np.float32, layout, scheme, name)
    scale[amplitude == 0] = 1.0
    if clip == "mse":
        scale = _best_scale(cut, scale, scheme, layout, importance, name)
    elif clip != "minmax":
        raise SsmExportError(
            errors.BAD_OPTION, f"'{clip}' is no way to clip", fix="take 'minmax' or 'mse'"
        )
    return scale.reshape(layout.stored_shape)


def with_scales(
    weight: np.ndarray,
    scheme: str | Scheme,
    scale: np.ndarray,
    *,
    axis: int | None,
    block: int = 0,
    scale_dtype: Any = np.float32,
    name: str = "",
) -> QuantizedTensor:
    """Rounds to the nearest code, ties to even as ONNX QuantizeLinear, with scales given.

    Args:
        scale: float, in the shape of ``QuantizedTensor.scale``. It is first rounded to
            ``scale_dtype``; for mxfp8 up to a power of two, so that nothing is clipped that was
            not before; for nvfp4 to E4M3 under a global scale = largest scale/448.

    The other arguments and errors are those of ``quantize_weight``.
    """
    scheme = scheme_named(scheme)
    layout = _layout(np.shape(weight), scheme, axis, block, name)
    wide = np.asarray(scale, np.float32).reshape(layout.scale_shape)
    check_finite(wide, layout, name)
    stored, effective, global_scale = rounded_scales(wide, scheme, scale_dtype, layout, name)
    values = np.empty(np.shape(weight), scheme.code_dtype)
    source, target = layout.cut(weight), layout.cut(values)
    for piece, rows in layout.pieces():
        part = np.asarray(source[piece], np.float32) / effective[rows]
        target[piece] = nearest_codes(part, scheme)
    return QuantizedTensor(
        scheme.name,
        values,
        stored.reshape(layout.stored_shape),
        layout.axis,
        block,
        global_scale,
        1 if scheme.needs_block else np.dtype(scale_dtype).itemsize,
    )


def largest_block(size: int, wanted: int, allowed: tuple[int, ...]) -> int:
    """The largest allowed block up to ``wanted`` that divides ``size``; 0 if there is none."""
    return max((block for block in allowed if block <= wanted and size % block == 0), default=0)


def fake_quantize(x: np.ndarray, scheme: str | Scheme, scale: Any) -> np.ndarray:
    """Round trip of an activation through ONNX QuantizeLinear and DequantizeLinear, float32.

    x: any shape; ``scale``: one positive number, or an array that broadcasts against x. Rounds ties
    to even and saturates: int8 at −128…127, int4 at −8…7, fp8 at ±448 (±Inf too; NaN stays NaN).
    """
    scheme = scheme_named(scheme)
    if scheme.needs_block:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"an activation has no static {scheme.name} scale",
            why="its scales belong to blocks of values",
            fix="take int8 or fp8 for activations",
        )
    scale = np.asarray(scale, np.float32)
    scaled = np.atleast_1d(np.asarray(x, np.float32) / scale)
    if scheme.integer:
        np.rint(scaled, out=scaled)
        np.clip(scaled, -scheme.maximum - 1, scheme.maximum, out=scaled)
    else:
        round_trip(scaled, scheme)
    scaled *= scale
    return scaled.reshape(np.broadcast_shapes(np.shape(x), scale.shape))


def _layout(
    shape: tuple[int, ...], scheme: Scheme, axis: int | None, block: int, name: str
) -> Layout:
    problem = ""
    if axis is None:
        if block:
            problem = "blocks need an axis"
    elif not -len(shape) <= axis < len(shape):
        problem = f"axis {axis} is not one of shape {list(shape)}"
    elif block and block not in scheme.blocks:
        problem = f"{scheme.name} has no blocks of {block}"
    elif block and shape[axis] % block:
        problem = f"blocks of {block} do not divide {shape[axis]} (axis {axis})"
    if scheme.needs_block and not block:
        problem = problem or f"{scheme.name} needs blocks"
    if problem:
        sizes = ", ".join(str(size) for size in scheme.blocks)
        one = "no block: one scale per channel"
        fix = f"take a block of {sizes} that divides the axis" if sizes else one
        raise SsmExportError(errors.BAD_OPTION, problem, where=name, fix=fix)
    return Layout(shape, axis, block)


def _best_scale(
    cut: np.ndarray,
    scale: np.ndarray,
    scheme: Scheme,
    layout: Layout,
    importance: np.ndarray | None,
    name: str,
) -> np.ndarray:
    """The scale among shrunken ones with the least squared error; the largest on a tie.

    Formats whose scales are coarse are judged with their scales as stored. The largest scale of an
    NVFP4 tensor keeps its place, because the global scale hangs on it.
    """
    shrinks: tuple[float, ...] = _SHRINKS
    if scheme.needs_block:
        top = scale.max(initial=0.0)
        _, scale, _ = rounded_scales(scale, scheme, np.float32, layout, name)
        if scheme.name == "mxfp8":
            shrinks = (1.0, 0.5)
    shared = layout.scale_shape[:1] == (1,)
    total = np.zeros((len(shrinks), *layout.scale_shape)) if shared else None
    best = np.empty(layout.scale_shape, np.float32)
    weigh = None
    if importance is not None:
        weigh = layout.cut(np.broadcast_to(np.asarray(importance, np.float32), layout.original))
    for piece, rows in layout.pieces():
        part, own = np.asarray(cut[piece], np.float32), scale[rows]
        share = None if weigh is None else weigh[piece]
        tries = [own * np.float32(shrink) for shrink in shrinks]
        if scheme.name == "nvfp4":
            grid = top / np.float32(448)
            tries = [e4m3_multiple(one, grid) for one in tries]
            tries = [np.where(own >= top * np.float32(0.9999), own, one) for one in tries]
        losses = np.stack([_loss(part, one, scheme, layout.reduced, share) for one in tries])
        if total is not None:
            total += losses
        else:
            best[rows] = np.take_along_axis(np.stack(tries), losses.argmin(0)[None], 0)[0]
    if total is not None:
        best[...] = scale * np.asarray(shrinks, np.float32)[total.argmin(axis=0)]
    return best


def _loss(
    part: np.ndarray,
    scale: np.ndarray,
    scheme: Scheme,
    reduced: tuple[int, ...],
    importance: np.ndarray | None,
) -> np.ndarray:
    rounded = round_trip(part / scale, scheme)
    rounded *= scale
    rounded -= part
    np.square(rounded, out=rounded)
    if importance is not None:
        rounded *= importance
    return rounded.sum(axis=reduced, keepdims=True)
