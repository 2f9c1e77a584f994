"""What number formats the engines of a target compute with: one table for quantize and build."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.targets import Target

CAPABILITY: Final[Mapping[str, tuple[int, int]]] = {
    "int8": (7, 5),
    "int4": (8, 0),
    "fp8": (8, 9),
    "mxfp8": (10, 0),
    "nvfp4": (10, 0),
}
"""Number format to the first compute capability that has it. TensorRT-RTX 1.7 builds int8 for 7.5,
int4 for 8.6 and not 7.5, FP8 for 8.9 and not 8.6, FP4 for 12.0 only (all tried). MXFP8 it builds
for 8.9 too, but the units that take block scales came with Blackwell (CUDA programming guide)."""
CHIP: Final = {(8, 9): "Ada", (10, 0): "Blackwell"}
TENSORRT: Final[Mapping[str, tuple[int, int]]] = {
    "int4": (10, 0),
    "fp8": (9, 0),
    "mxfp8": (10, 12),
    "nvfp4": (10, 8),
}
"""Number format to the first TensorRT that reads it (NVIDIA's release notes)."""
INT4_BLOCKS: Final = (16, 32, 64, 128, 256)
"""Blocks of int4 weights that there are; a target may take fewer of them."""
BLOCKS: Final[Mapping[str, tuple[int, ...]]] = {"tensorrt": (64, 128), "tensorrt-rtx": INT4_BLOCKS}
"""Engine kind to its blocks of int4 weights. TensorRT: «Quantization Schemes» of its documentation;
TensorRT-RTX: every power of two from 16 on was built. Both need a block that divides the inputs."""
ANY_FROM: Final = (8, 0)
"""The least compute capability of a target that stands for every GPU: Ampere."""
INSTEAD: Final[Mapping[str, tuple[str, ...]]] = {
    "nvfp4": ("w4a16", "w8a16"),
    "mxfp8": ("fp8", "w8a8"),
    "fp8": ("w8a8",),
    "int4": ("w4a16", "w8a16"),
    "int8": (),
}
"""Number format to the recipes that come nearest, best first."""
RECIPE_FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "w4a16": ("int4", "int8"),
    "w8a16": ("int8",),
    "w8a8": ("int8",),
    "fp8": ("fp8", "int8"),
}
"""Those recipes and the formats that they have."""


def formats(target: Target, engine: str | None = None) -> tuple[str, ...]:
    """The number formats that a target computes with, sorted.

    Raises:
        SsmExportError: as :func:`kind_of`.
    """
    return tuple(sorted(name for name in CAPABILITY if not lacking(name, target, engine)))


def lacking(scheme: str, target: Target, engine: str | None = None) -> str:
    """Why a target cannot compute with a format; empty where it can."""
    kind, capability, needed = kind_of(target, engine), target.capability, CAPABILITY[scheme]
    if (capability or ANY_FROM) < needed:
        chip = f" ({CHIP[needed]})" if needed in CHIP else ""
        has = (
            f"its GPU has {target.compute_capability}"
            if capability
            else f"{target.name} stands for every GPU from {ANY_FROM[0]}.{ANY_FROM[1]} on"
        )
        return f"{scheme} needs compute capability {needed[0]}.{needed[1]}{chip}, {has}"
    first = TENSORRT.get(scheme)
    if kind == "tensorrt" and target.tensorrt and first and _version(target.tensorrt) < first:
        return f"{scheme} needs TensorRT {first[0]}.{first[1]}, it has {target.tensorrt}"
    return ""


def kind_of(target: Target, engine: str | None) -> str:
    """The engine kind that is meant: the target's first when None.

    Raises:
        SsmExportError: ``BAD_OPTION`` for one that does not build for the target.
    """
    kind = engine or target.engines[0]
    if kind not in target.engines:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"{kind} does not build for {target.name}",
            where="--engine",
            fix=f"use {' or '.join(target.engines)}",
        )
    return kind


def refuse_formats(
    schemes: Iterable[str], blocks: Iterable[int], target: Target, engine: str, where: str
) -> None:
    """Refuse weights and inputs that a target cannot compute with.

    Args:
        schemes: formats that a bundle has; ones that this release does not know are let through.
        blocks: of its int4 weights.
        target: what is built for.
        engine: the engine kind.
        where: the bundle, for the message.

    Raises:
        SsmExportError: ``UNSUPPORTED_SCHEME`` with the formats, and what to take instead.
    """
    missing = {
        scheme: reason
        for scheme in sorted(set(schemes) & set(CAPABILITY))
        if (reason := lacking(scheme, target, engine))
    }
    taken = BLOCKS[engine]
    odd = sorted(set(blocks) - set(taken))
    if missing:
        what = f"it has {' and '.join(missing)} tensors, which {target.name} cannot compute with"
        why = "; ".join(missing.values())
    elif odd:
        sizes = ", ".join(map(str, odd))
        what = f"it has int4 weights in blocks of {sizes}, which {engine} does not take"
        why = f"its blocks of int4 weights are {' and '.join(map(str, taken))}"
    else:
        return
    raise SsmExportError(
        errors.UNSUPPORTED_SCHEME,
        what,
        where=where,
        why=why,
        fix=_quantize_again([*missing, *(["int4"] if odd else [])], target, engine),
    )


def _quantize_again(schemes: Iterable[str], target: Target, engine: str) -> str:
    """The command that makes a bundle that the target runs."""
    able = formats(target, engine)
    for recipe in dict.fromkeys(name for scheme in schemes for name in INSTEAD[scheme]):
        if set(RECIPE_FORMATS[recipe]) <= set(able):
            return (
                f"{target.name} computes with {', '.join(able)}: ssm-export quantize "
                f"FLOAT_BUNDLE -o BUNDLE --recipe {recipe} --target {target.name}"
            )
    return "build the float bundle, or take another --target"


def _version(text: str) -> tuple[int, int]:
    major, minor, *_ = [*text.split("."), "0"]
    return int(major), int(minor)
