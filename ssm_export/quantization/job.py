"""What is asked of a quantization, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from ssm_export import errors
from ssm_export.bundle import FORMS, Bundle
from ssm_export.errors import SsmExportError
from ssm_export.graph_files import CANONICAL
from ssm_export.quantization.recipe import Recipe, Rule, match, read_recipe
from ssm_export.quantization.sites import Sites, already_quantized, find_sites
from ssm_export.quantization.state import check_state_type
from ssm_export.quantization.support import allowed_blocks, check_target
from ssm_export.targets import get_target

if TYPE_CHECKING:
    from ssm_export.targets import Target


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Args:
        recipe: a name of ``list recipes``, or a YAML file.
        calibration: text, token ids, recorded inputs, or a quantized bundle whose data and
            statistics are taken again; the model writes its own text when None.
        evaluation: held-out data; the end of the calibration data when None.
        target: the device that it is for: what it cannot compute with is refused.
        state_dtype: ``fp32``, ``fp16`` or ``int8``; the recipe's choice when None.
        sequences: rows of calibration; the recipe's when None.
        tokens: of a row; the recipe's when None.
        ablation: also measure the recipe with each of its steps left out.
        sensitivity: measure every tensor alone; done where it takes minutes at most when None.
        long_drift: also decode 65 536 tokens, whatever it takes.
        verify: whether the graphs must pass, and the loss be within the recipe's limit.
    """

    recipe: str = "w8a16"
    calibration: str | None = None
    evaluation: str | None = None
    target: str | None = None
    state_dtype: str | None = None
    sequences: int | None = None
    tokens: int | None = None
    ablation: bool = False
    sensitivity: bool | None = None
    long_drift: bool = False
    verify: bool = True


@dataclass(frozen=True)
class Job:
    """A quantization that was checked and not begun.

    Attributes:
        source: the float bundle.
        options: as given.
        recipe: what they name.
        target: likewise; None for any.
        state_dtype: of the new bundle.
        blocks: of int4 that the target takes.
        graphs: form to canonical float graph.
        sites: of the model.
        rules: site to its rule.
    """

    source: Bundle
    options: QuantizeOptions
    recipe: Recipe
    target: Target | None
    state_dtype: str
    blocks: tuple[int, ...]
    graphs: Mapping[str, ir.Model]
    sites: Sites
    rules: Mapping[str, Rule]


def prepare(bundle: Bundle, options: QuantizeOptions) -> Job:
    """Check everything that can be checked before any work.

    Raises:
        SsmExportError: ``ALREADY_QUANTIZED``, ``BAD_CONFIG_FILE`` for a recipe that cannot be used
            or names tensors that do not exist, ``UNSUPPORTED_SCHEME`` for one that the target
            cannot run, ``BAD_OPTION`` for a state type.
    """
    manifest = bundle.manifest
    if manifest.quantization:
        raise already_quantized(str(bundle.path))
    recipe = read_recipe(options.recipe)
    target = get_target(options.target) if options.target else None
    if target is not None:
        check_target(recipe, target)
    graphs = {form: ir.load(bundle.graph_path(form, CANONICAL)) for form in FORMS}
    sites = find_sites(graphs["prefill"])
    rules = match(recipe, sites.names(), manifest.family)
    asked = options.state_dtype or (recipe.state if recipe.state != "keep" else None)
    state_dtype = asked or manifest.state_dtype
    check_state_type(state_dtype)
    if manifest.state_dtype != "fp32" and state_dtype not in ("fp32", manifest.state_dtype):
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the states of the bundle are {manifest.state_dtype} already",
            where=f"--state-dtype {state_dtype}",
            fix="export with --state-dtype fp32, then quantize",
        )
    return Job(
        bundle, options, recipe, target, state_dtype, allowed_blocks(target), graphs, sites, rules
    )
