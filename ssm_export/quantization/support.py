"""What the engines of a target compute with: refused up front, with the recipe to take instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.recipe import INT4_BLOCKS, Recipe, read_recipe
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
BLOCKS: Final[Mapping[str, tuple[int, ...]]] = {"tensorrt": (64, 128), "tensorrt-rtx": INT4_BLOCKS}
"""Engine kind to its blocks of int4 weights. TensorRT: «Quantization Schemes» of its documentation;
TensorRT-RTX: every power of two from 16 on was built. Both need a block that divides the inputs."""
ANY_FROM: Final = (8, 0)
"""The least compute capability of a target that stands for every GPU: Ampere."""

_INSTEAD: Final[Mapping[str, tuple[str, ...]]] = {
    "nvfp4": ("w4a16", "w8a16"),
    "mxfp8": ("fp8", "w8a8"),
    "fp8": ("w8a8",),
    "int4": ("w4a16", "w8a16"),
    "int8": (),
}
"""Number format to the recipes that come nearest, best first."""


def formats(target: Target, engine: str | None = None) -> tuple[str, ...]:
    """The number formats that a target computes with, sorted."""
    return tuple(sorted(name for name in CAPABILITY if not _lacking(name, target, engine)))


def allowed_blocks(target: Target | None, engine: str | None = None) -> tuple[int, ...]:
    """Blocks of int4 weights that a target takes, ascending; without one, those of ONNX Runtime."""
    return INT4_BLOCKS if target is None else BLOCKS[_kind(target, engine)]


def check_target(recipe: Recipe, target: Target, engine: str | None = None) -> None:
    """Refuse a recipe that a target cannot run.

    Args:
        recipe: the recipe; every format that it might choose is looked at.
        target: the device.
        engine: one of the target's engine kinds; its first when None.

    Raises:
        SsmExportError: ``UNSUPPORTED_SCHEME`` with the recipe to take instead; ``BAD_OPTION`` for
            an engine kind that does not build for the target.
    """
    refused = _refusal(recipe, target, _kind(target, engine))
    if refused is not None:
        raise refused


def can_run(recipe: Recipe, target: Target, engine: str | None = None) -> bool:
    """Whether a target runs a recipe; ``engine`` as for :func:`check_target`."""
    return _refusal(recipe, target, _kind(target, engine)) is None


def _refusal(recipe: Recipe, target: Target, kind: str) -> SsmExportError | None:
    for scheme in recipe.schemes:
        reason = _lacking(scheme, target, kind)
        if reason:
            return SsmExportError(
                errors.UNSUPPORTED_SCHEME,
                f"the recipe '{recipe.name}' has {scheme} tensors, which {target.name} cannot "
                "compute with",
                where=_where(recipe, scheme),
                why=reason,
                fix=_instead(recipe, scheme, target, kind),
            )
    blocks = BLOCKS[kind]
    for number, rule in enumerate(recipe.rules, 1):
        if rule.weights == "int4" and rule.block not in blocks:
            known = " or ".join(map(str, blocks))
            return SsmExportError(
                errors.UNSUPPORTED_SCHEME,
                f"the recipe '{recipe.name}' has int4 weights in blocks of {rule.block}, which "
                f"{kind} on {target.name} does not take",
                where=f"rule {number}",
                why=f"its blocks of int4 weights are {known}",
                fix=f"block: {known} in that rule; or {_instead(recipe, 'int4', target, kind)}",
            )
    return None


def _kind(target: Target, engine: str | None) -> str:
    kind = engine or target.engines[0]
    if kind not in target.engines:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"{kind} does not build for {target.name}",
            where="--engine",
            fix=f"use {' or '.join(target.engines)}",
        )
    return kind


def _lacking(scheme: str, target: Target, engine: str | None) -> str:
    """Why a target cannot compute with a format; empty where it can."""
    kind, capability, needed = _kind(target, engine), target.capability, CAPABILITY[scheme]
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


def _version(text: str) -> tuple[int, int]:
    major, minor, *_ = [*text.split("."), "0"]
    return int(major), int(minor)


def _where(recipe: Recipe, scheme: str) -> str:
    """The first rule that has a format."""
    for number, rule in enumerate(recipe.rules, 1):
        if scheme in (rule.weights, rule.activations):
            return f"rule {number}"
    return "'mixed'"


def _instead(recipe: Recipe, scheme: str, target: Target, kind: str) -> str:
    for name in _INSTEAD[scheme]:
        other = read_recipe(name)
        if name != recipe.name and _refusal(other, target, kind) is None:
            return f"--recipe {name} ({other.description})"
    return "leave these tensors in floating point, or take another target"
