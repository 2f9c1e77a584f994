"""The number formats of quantized tensors: what a code is, and rounding to the nearest one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import ml_dtypes
import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError

_INTEGER_BLOCKS: Final = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Scheme:
    """One number format.

    Attributes:
        name: int8, int4, fp8, mxfp8 or nvfp4.
        bits: of one code.
        maximum: the largest magnitude of a code.
        blocks: block sizes that it may have; () where one scale per channel or tensor is all.
    """

    name: str
    bits: int
    maximum: float
    blocks: tuple[int, ...] = ()

    @property
    def integer(self) -> bool:
        """Whether codes are integers (even steps) and not small floats."""
        return self.name in ("int8", "int4")

    @property
    def needs_block(self) -> bool:
        """Whether it exists in blocks only: MXFP8 and NVFP4."""
        return self.name in ("mxfp8", "nvfp4")

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """The numpy type that codes are held in."""
        if self.integer:
            return np.dtype(np.int8)
        small = ml_dtypes.float4_e2m1fn if self.name == "nvfp4" else ml_dtypes.float8_e4m3fn
        return np.dtype(small)


SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme("int8", 8, 127.0, _INTEGER_BLOCKS),
            Scheme("int4", 4, 7.0, _INTEGER_BLOCKS),
            Scheme("fp8", 8, 448.0),
            Scheme("mxfp8", 8, 448.0, (32,)),
            Scheme("nvfp4", 4, 6.0, (16,)),
        )
    }
)
"""Every format by name. int4 leaves −8 unused and int8 −128, so that both are symmetric."""


def scheme_named(scheme: str | Scheme) -> Scheme:
    """The format of a name; BAD_OPTION with the names that exist."""
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in SCHEMES:
        raise SsmExportError(
            errors.BAD_OPTION, f"no scheme '{scheme}'", fix="take one of " + ", ".join(SCHEMES)
        )
    return SCHEMES[scheme]


def nearest_codes(scaled: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Values over scales (float32, overwritten) to codes; ties to even, saturating."""
    if scheme.integer:
        np.rint(scaled, out=scaled)
    np.clip(scaled, -scheme.maximum, scheme.maximum, out=scaled)
    return scaled.astype(scheme.code_dtype)


def round_trip(scaled: np.ndarray, scheme: Scheme) -> np.ndarray:
    """What ``nearest_codes`` decodes to, float32, in place; for small floats faster than casts.

    Adding 1.5·2ᵏ to a float32 and taking it away again rounds to a multiple of 2ᵏ⁻²³, ties to even.
    """
    np.clip(scaled, -scheme.maximum, scheme.maximum, out=scaled)
    if scheme.integer:
        return np.rint(scaled, out=scaled)
    mantissa, lowest = (1, 0) if scheme.name == "nvfp4" else (3, -6)
    pivot = scaled.view(np.uint32) & np.uint32(0x7F800000)
    np.maximum(pivot, np.uint32((lowest + 127) << 23), out=pivot)
    pivot += np.uint32(((23 - mantissa) << 23) | 0x400000)
    scaled += pivot.view(np.float32)
    scaled -= pivot.view(np.float32)
    return scaled
