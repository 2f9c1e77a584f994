"""What the engines of a target compute with: refused up front, with the recipe to take instead."""

from __future__ import annotations

from ssm_export import errors
from ssm_export.device_formats import BLOCKS, INSTEAD, INT4_BLOCKS, kind_of, lacking
from ssm_export.errors import SsmExportError
from ssm_export.quantization.recipe import Recipe, read_recipe
from ssm_export.targets import Target


def allowed_blocks(target: Target | None, engine: str | None = None) -> tuple[int, ...]:
    """Blocks of int4 weights that a target takes, ascending; without one, those of ONNX Runtime."""
    return INT4_BLOCKS if target is None else BLOCKS[kind_of(target, engine)]


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
    refused = _refusal(recipe, target, kind_of(target, engine))
    if refused is not None:
        raise refused


def can_run(recipe: Recipe, target: Target, engine: str | None = None) -> bool:
    """Whether a target runs a recipe; ``engine`` as for :func:`check_target`."""
    return _refusal(recipe, target, kind_of(target, engine)) is None


def _refusal(recipe: Recipe, target: Target, kind: str) -> SsmExportError | None:
    for scheme in recipe.schemes:
        reason = lacking(scheme, target, kind)
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


def _where(recipe: Recipe, scheme: str) -> str:
    """The first rule that has a format."""
    for number, rule in enumerate(recipe.rules, 1):
        if scheme in (rule.weights, rule.activations):
            return f"rule {number}"
    return "'mixed'"


def _instead(recipe: Recipe, scheme: str, target: Target, kind: str) -> str:
    for name in INSTEAD[scheme]:
        other = read_recipe(name)
        if name != recipe.name and _refusal(other, target, kind) is None:
            return f"--recipe {name} ({other.description})"
    return "leave these tensors in floating point, or take another target"
