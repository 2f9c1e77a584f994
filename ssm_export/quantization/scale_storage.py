"""Scales as a file stores them: their rounding, and scales that a type cannot hold."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.number_formats import SCHEMES, Scheme, round_trip
from ssm_export.quantization.scale_layout import Layout


def check_finite(amplitude: np.ndarray, layout: Layout, name: str) -> None:
    """NOT_FINITE with the place of the first amplitude that is NaN or Inf."""
    bad = np.flatnonzero(~np.isfinite(amplitude))
    if bad.size:
        raise SsmExportError(
            errors.NOT_FINITE,
            f"{layout.place(int(bad[0]))} holds NaN or Inf ({bad.size} in all)",
            where=name,
            fix="repair or export the checkpoint again",
        )


def check_normal(
    scale: np.ndarray,
    amplitude: np.ndarray,
    dtype: Any,
    layout: Layout,
    scheme: Scheme,
    name: str,
) -> None:
    """Refuses scales of values other than 0 that ``dtype`` holds as 0, subnormal or Inf."""
    limits = ml_dtypes.finfo(dtype)
    tiny, title = float(limits.smallest_normal), np.dtype(dtype).name
    small = np.flatnonzero((scale < tiny) & (amplitude > 0))
    if small.size:
        at = int(small[0])
        raise SsmExportError(
            errors.SCALE_UNDERFLOW,
            f"the {scheme.name} scale {scale.flat[at]:.3g} of {layout.place(at)} is below "
            f"{tiny:.3g}, the smallest normal number of {title} ({small.size} such scales)",
            where=name,
            fix="export with --precision bf16 or fp32, or leave this tensor out of the recipe",
        )
    large = np.flatnonzero(scale > float(limits.max))
    if large.size:
        at = int(large[0])
        raise SsmExportError(
            errors.NOT_FINITE,
            f"the {scheme.name} scale {scale.flat[at]:.3g} of {layout.place(at)} overflows {title}",
            where=name,
            fix="export with --precision bf16 or fp32",
        )


def rounded_scales(
    scale: np.ndarray, scheme: Scheme, dtype: Any, layout: Layout, name: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Scales as stored, their float32 values, and the global scale."""
    check_normal(scale, np.ones_like(scale), np.float32, layout, scheme, name)
    if scheme.name == "mxfp8":
        mantissa, exponent = np.frexp(scale)
        power = np.where(mantissa == 0.5, exponent - 1, exponent)
        wide = np.ldexp(np.float32(1), np.minimum(power, 127))
        return wide.astype(ml_dtypes.float8_e8m0fnu), wide, 1.0
    if scheme.name == "nvfp4":
        top = np.float32(scale.max(initial=0.0)) / np.float32(448)
        check_normal(top.reshape(1), np.ones(1), np.float32, Layout((1,), None, 0), scheme, name)
        wide = e4m3_multiple(scale, top)
        return (wide / top).astype(ml_dtypes.float8_e4m3fn), wide, float(top)
    check_normal(scale, np.ones_like(scale), dtype, layout, scheme, name)
    wide = scale.astype(dtype).astype(np.float32)
    return wide, wide, 1.0


def e4m3_multiple(scale: np.ndarray, top: np.float32) -> np.ndarray:
    """The nearest (E4M3 number other than 0)·top; 2⁻⁹ is the smallest of these numbers."""
    return np.maximum(round_trip(scale / top, SCHEMES["fp8"]), np.float32(2.0**-9)) * top
