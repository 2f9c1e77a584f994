"""A recipe applied to a model: what becomes of each of its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.calibration import Statistics, ValueStatistics
from ssm_export.quantization.grouping import group_channels, group_heads
from ssm_export.quantization.recipe import FLOAT, Rule
from ssm_export.quantization.rotation import block_size
from ssm_export.quantization.schemes import SCHEMES, largest_block
from ssm_export.quantization.sites import ScanSite, Sites, WeightSite, product_sites

STEPS: Final = ("clip", "rotation", "grouping", "rounding")
"""Parts of a recipe that can be left out one by one to see what they gain."""
BLOCKED: Final = ("mxfp8", "nvfp4")
"""Formats that exist in blocks only."""


@dataclass(frozen=True)
class WeightKey:
    """Everything that the codes of a weight depend on.

    Attributes:
        site: the weight site's name.
        scheme: number format.
        block: rows of the input axis that share a scale; 0 per output channel.
        rotate: block of the rotation that is folded in; 0 for none.
        rounding: ``nearest`` or ``gptq``.
        clip: ``minmax`` or ``mse``.
    """

    site: str
    scheme: str
    block: int = 0
    rotate: int = 0
    rounding: str = "nearest"
    clip: str = "minmax"


@dataclass(frozen=True, eq=False)
class ActivationPlan:
    """What becomes of a value on its way into some nodes.

    Attributes:
        name: of the site that decided it, for reports.
        value: the tensor (B,T,…).
        uses: node name and input position of the readers that get the result.
        rotate: block of the Hadamard rotation of its last axis; 0 for none.
        scheme: number format; ``float`` where it is rotated only.
        scale: value of a code of 1, after division by ``factors``; 0 for ``float``.
        factors: relative scales over the axes after batch and time, few distinct values, the
            largest 1; None for one scale.
    """

    name: str
    value: str
    uses: tuple[tuple[str, int], ...]
    rotate: int = 0
    scheme: str = FLOAT
    scale: float = 0.0
    factors: np.ndarray | None = None


@dataclass(frozen=True)
class Plan:
    """What becomes of every tensor of a model.

    Attributes:
        weights: weight site to its key; sites that are not here stay float.
        activations: in graph order.
        notes: where the recipe could not be followed to the letter, and what was taken.
    """

    weights: Mapping[str, WeightKey] = field(default_factory=dict)
    activations: tuple[ActivationPlan, ...] = ()
    notes: tuple[str, ...] = ()


def without_step(rules: Mapping[str, Rule], step: str) -> dict[str, Rule]:
    """The rules with one of :data:`STEPS` left out: what plain quantization does in its place."""
    plain: dict[str, dict[str, Any]] = {
        "clip": {"clip": "minmax", "weight_clip": "minmax"},
        "rotation": {"rotate": 0},
        "grouping": {"grouping": (0, 0)},
        "rounding": {"rounding": "nearest"},
    }
    return {name: dataclasses.replace(rule, **plain[step]) for name, rule in rules.items()}


def rotations(rules: Mapping[str, Rule], sites: Sites) -> dict[str, int]:
    """Weight site to the block that its input is rotated in."""
    return {
        site.name: block_size(site.shape[0], rules[site.name].rotate)
        for site in sites.weights
        if site.name in rules
        and rules[site.name].rotate
        and rules[site.name].weights != FLOAT
        and not site.is_vocabulary
    }


def values_needed(rules: Mapping[str, Rule], sites: Sites) -> set[tuple[str, int]]:
    """The activations, with the block that they are rotated in, whose scales rules take from
    statistics."""
    turned = rotations(rules, sites)
    scans = {
        (site.value, 0)
        for site in sites.scans
        if site.name in rules and rules[site.name].activations != FLOAT
    }
    products = {
        (site.product.activation, turned.get(site.name, 0))
        for site in product_sites(sites.weights)
        if site.product and site.name in rules and rules[site.name].activations != FLOAT
    }
    return scans | products


def weight_keys(
    rules: Mapping[str, Rule], sites: Sites, blocks: Iterable[int]
) -> tuple[dict[str, WeightKey], tuple[str, ...]]:
    """How each weight is rounded, and notes on what had to be taken instead.

    Args:
        rules: site to its rule.
        sites: of the model.
        blocks: blocks of int4 that the target takes.
    """
    turned = rotations(rules, sites)
    keys: dict[str, WeightKey] = {}
    odd: dict[str, list[str]] = {}
    for site in sites.weights:
        rule = rules.get(site.name)
        if rule is None or rule.weights == FLOAT:
            continue
        key = WeightKey(
            site.name,
            rule.weights,
            rule.weight_block,
            turned.get(site.name, 0),
            "nearest" if site.is_vocabulary else rule.rounding,
            rule.weight_clip,
        )
        inputs = site.shape[site.input_axis]
        if key.scheme == "int4":
            key = _fitting(key, inputs, tuple(blocks))
        elif key.scheme in BLOCKED and inputs % key.block:
            key = dataclasses.replace(key, scheme="int8", block=0)
        if (key.scheme, key.block) != (rule.weights, rule.weight_block):
            taken = f"{key.scheme} in blocks of {key.block}" if key.block else key.scheme
            wanted = f"{rule.weights} in blocks of {rule.weight_block}"
            note = f"{inputs} input channels cannot be cut as {wanted}: {taken}"
            odd.setdefault(note, []).append(site.name)
        keys[site.name] = key
    notes = tuple(f"{note} ({len(names)} weights, {names[0]} …)" for note, names in odd.items())
    return keys, notes


def make_plan(
    rules: Mapping[str, Rule],
    sites: Sites,
    keys: Mapping[str, WeightKey],
    statistics: Statistics | None,
    precision: str,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Decide every scale of the activations.

    Args:
        rules: site to its rule.
        sites: of the model.
        keys: of its weights.
        statistics: of its activations; None where no rule needs any.
        precision: of the bundle: scales are of that type.
        notes: of :func:`weight_keys`.
    """
    made: dict[tuple[str, int], ActivationPlan] = {}
    for scan in sites.scans:
        rule = rules.get(scan.name)
        if rule is not None and rule.activations != FLOAT:
            uses = ((scan.node, {"x": 0, "B": 3, "C": 4}[scan.port]),)
            made[scan.value, 0] = _activation(scan, uses, rule, 0, statistics, precision)
    turned = rotations(rules, sites)
    for site in sites.weights:
        rule, use = rules.get(site.name), site.product
        if rule is None or use is None:
            continue
        rotate = turned.get(site.name, 0)
        if rule.activations == FLOAT and not rotate:
            continue
        if site.is_vocabulary:
            raise SsmExportError(
                errors.BAD_CONFIG_FILE,
                f"the rule of '{site.name}' quantizes its input, which stays floating point",
                why="the input of the head is what logits are made of",
                fix="activations: float",
            )
        at = (use.activation, rotate)
        reads = ((use.node, 0),)
        if at in made:
            made[at] = dataclasses.replace(made[at], uses=(*made[at].uses, *reads))
        else:
            made[at] = _activation(site, reads, rule, rotate, statistics, precision)
    return Plan(dict(keys), tuple(made.values()), notes)


def _fitting(key: WeightKey, inputs: int, allowed: tuple[int, ...]) -> WeightKey:
    """The key with a block that divides the input channels; int8 where no block of int4 does."""
    block = largest_block(inputs, key.block, allowed)
    if block:
        return dataclasses.replace(key, block=block)
    return dataclasses.replace(key, scheme="int8", block=0)


def _activation(
    site: ScanSite | WeightSite,
    uses: tuple[tuple[str, int], ...],
    rule: Rule,
    rotate: int,
    statistics: Statistics | None,
    precision: str,
) -> ActivationPlan:
    if isinstance(site, ScanSite):
        value = site.value
    else:
        assert site.product is not None
        value = site.product.activation
    plan = ActivationPlan(site.name, value, uses, rotate, rule.activations)
    if rule.activations == FLOAT:
        return plan
    assert statistics is not None
    seen = statistics.of(value, rotate)
    if rule.grouping == (0, 0) or not isinstance(site, ScanSite):
        amplitude = _clipped(seen, rule)
        # ONNX Runtime 1.32 cannot load an int8 DequantizeLinear that goes straight into a Reshape,
        # as B does in the step of Mamba-1; factors of 1 put a Mul between them.
        shared = isinstance(site, ScanSite) and site.port != "x"
        factors = np.ones(seen.channels.shape) if shared else None
    else:
        # Clipped first: a channel's rare huge values should not choose its group.
        channels = np.minimum(seen.channels, _clipped(seen, rule))
        groups = _groups(channels, site, rule.grouping)
        amplitude = float(groups.max())
        factors = groups / amplitude if amplitude > 0 else np.ones_like(groups)
    scale = amplitude / SCHEMES[rule.activations].maximum if amplitude > 0 else 1.0
    if factors is not None:
        factors = factors.astype(scale_type(precision)).astype(np.float32)
    return dataclasses.replace(
        plan, scale=_representable(scale, site.name, precision), factors=factors
    )


def _clipped(seen: ValueStatistics, rule: Rule) -> float:
    find: dict[str, Callable[[], float]] = {
        "minmax": seen.histogram.minmax,
        "percentile": lambda: seen.histogram.percentile(rule.percentile),
        "mse": lambda: seen.histogram.mse_amplitude(rule.activations),
    }
    return float(find[rule.clip]())


def _groups(channels: np.ndarray, site: ScanSite, grouping: tuple[int, int]) -> np.ndarray:
    """Amplitudes over the axes of the site, equal within a group."""
    if site.port != "x":  # B and C: one scale per group of heads
        return np.broadcast_to(channels.max(axis=-1, keepdims=True), channels.shape).copy()
    if channels.ndim == 1:
        return group_channels(channels, grouping[0] * grouping[1]).amplitude
    heads, of_head = grouping
    found = group_heads(channels, site.groups, head_groups=heads, channel_groups=of_head)
    return found.amplitude


def scale_type(precision: str) -> np.dtype[Any]:
    """The numpy type that the scales of a bundle are stored in."""
    name = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def _representable(scale: float, name: str, precision: str) -> float:
    """The scale as its type holds it; ``SCALE_UNDERFLOW`` where that is not a normal number."""
    dtype = scale_type(precision)
    smallest = float(ml_dtypes.finfo(dtype).tiny)
    if not smallest <= scale < float(ml_dtypes.finfo(dtype).max):
        raise SsmExportError(
            errors.SCALE_UNDERFLOW,
            f"its scale {scale:.3g} is no normal number in {precision}",
            where=name,
            why=f"normal numbers begin at {smallest:.1e}",
            fix="export the float bundle with --precision bf16 or fp32, or leave the tensor float "
            "with a rule of its own",
        )
    return float(np.asarray(scale, dtype).astype(np.float64))
