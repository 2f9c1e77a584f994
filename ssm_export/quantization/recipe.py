"""Recipes: which tensors are quantized how; YAML in ``configs/quantize``, or a user's own file.

A recipe is an ordered list of rules. A rule names sites by patterns and says what becomes of them;
the first rule that matches a site decides, and a site that no rule matches stays floating point.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.resources import config_dir

FLOAT: Final = "float"
WEIGHT_SCHEMES: Final = (FLOAT, "int8", "int4", "fp8", "mxfp8", "nvfp4")
ACTIVATION_SCHEMES: Final = (FLOAT, "int8", "fp8")
STATES: Final = ("keep", "fp32", "fp16", "int8")
CLIPS: Final = ("minmax", "percentile", "mse")
WEIGHT_CLIPS: Final = ("minmax", "mse")
ROUNDINGS: Final = ("nearest", "gptq")
PARTNERS: Final = {
    FLOAT: WEIGHT_SCHEMES,
    "int8": (FLOAT, "int8"),
    "fp8": (FLOAT, "fp8"),
}
"""Format of the activations to the formats of weights that a GPU multiplies them with. ``float``
weights beside quantized activations are for scan inputs, which have no weights."""
FIXED_BLOCKS: Final = {"mxfp8": 32, "nvfp4": 16}
"""Formats whose block is part of their definition (OCP Microscaling 1.0; NVIDIA's NVFP4)."""
DEFAULT_INT4_BLOCK: Final = 128


@dataclass(frozen=True)
class Rule:
    """What becomes of the sites that a rule's patterns match.

    Attributes:
        tensors: patterns of site names, ``*`` and ``?`` as in a shell.
        weights: number format of the weights, one of :data:`WEIGHT_SCHEMES`.
        activations: number format of the input, one of :data:`ACTIVATION_SCHEMES`, with a static
            scale from calibration.
        block: rows (input channels) of the weights that share a scale; 0 is one scale per output
            channel. Only for ``int4``; ``mxfp8`` and ``nvfp4`` have blocks of their own.
        clip: how the largest representable activation is found: the largest seen (``minmax``), a
            percentile of the magnitudes (``percentile``), the least squared error (``mse``).
        percentile: for ``clip: percentile``, in percent.
        weight_clip: the same for the weights, ``minmax`` or ``mse``.
        rounding: ``nearest``, or ``gptq``, which makes up for the error of each column in the
            columns after it (Frantar et al. 2022).
        rotate: largest block of the Hadamard transform of the input, a power of two; the inverse
            goes into the weights. 0 for none.
        grouping: of a scan input, (head clusters, channel clusters) for each of the G groups; each
            pair has a scale. For x (T,H,P) the heads of a group are sorted by amplitude into so
            many clusters, then the channels of a cluster (Quamba2, arXiv 2503.22879). For B and C
            (T,G,N), which have no heads, (1, 1) is one scale per group. (0, 0) is one scale for the
            whole tensor.
        families: model types that the rule is for; empty for all.
    """

    tensors: tuple[str, ...]
    weights: str = FLOAT
    activations: str = FLOAT
    block: int = 0
    clip: str = "minmax"
    percentile: float = 99.999
    weight_clip: str = "minmax"
    rounding: str = "nearest"
    rotate: int = 0
    grouping: tuple[int, int] = (0, 0)
    families: tuple[str, ...] = ()

    @property
    def quantizes(self) -> bool:
        """Whether it changes anything: a rule of floats keeps sites from the rules after it."""
        return self.weights != FLOAT or self.activations != FLOAT

    @property
    def weight_block(self) -> int:
        """Block of the weights as their format has it; 0 for one scale per output channel."""
        return FIXED_BLOCKS.get(self.weights, self.block)

    def with_weights(self, scheme: str) -> Rule:
        """The same rule with another format of the weights, and the block that format needs."""
        block = (self.block or DEFAULT_INT4_BLOCK) if scheme == "int4" else 0
        rounding = self.rounding if scheme in ("int8", "int4") else "nearest"
        return dataclasses.replace(self, weights=scheme, block=block, rounding=rounding)


@dataclass(frozen=True)
class Calibration:
    """How much data statistics are taken from; the paper's (Quamba) is 512 × 512."""

    sequences: int = 64
    tokens: int = 512


@dataclass(frozen=True)
class Mixed:
    """Choose the format of each weight by how much quality it costs.

    Exactly one of ``size`` and ``kl`` is given. The rule of a weight says everything else; weights
    whose rule has none of the candidates as its format take no part.

    Attributes:
        candidates: formats of the weights from cheap to dear; ``float`` may be the last.
        size: weights of the result as a share of the same weights in fp16, at most.
        kl: KL divergence of the result from the float model in bits per token, at most.
    """

    candidates: tuple[str, ...]
    size: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class Recipe:
    """An ordered list of rules, and what else a quantization is made of.

    Attributes:
        name: the file's name without its ending.
        description: one line for people.
        rules: the first that matches a site decides.
        state: type of the recurrent state of the graphs; ``keep`` leaves it as it is.
        calibration: how much data.
        mixed: the choice by sensitivity; None for a recipe that is decided by its rules alone.
        limit_bits: bits per byte that the recipe may lose against the float model; None where it
            promises nothing.
    """

    name: str
    description: str
    rules: tuple[Rule, ...]
    state: str = "keep"
    calibration: Calibration = Calibration()
    mixed: Mixed | None = None
    limit_bits: float | None = None

    @property
    def schemes(self) -> tuple[str, ...]:
        """Every number format that it may use, of weights and activations, sorted."""
        used = {scheme for rule in self.rules for scheme in (rule.weights, rule.activations)}
        used |= set(self.mixed.candidates) if self.mixed else set()
        return tuple(sorted(used - {FLOAT}))

    @property
    def static_activations(self) -> bool:
        """Whether a scale of activations comes from calibration."""
        return any(rule.activations != FLOAT for rule in self.rules)

    def as_json(self) -> dict[str, Any]:
        """The recipe as a report and ``list recipes`` have it."""
        return dataclasses.asdict(self)


def recipe_names() -> list[str]:
    """The names of every recipe that comes with this release, sorted."""
    return sorted(path.stem for path in config_dir("quantize").glob("*.yaml"))


def read_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """The recipe of a name, or of a YAML file of one's own.

    Raises:
        SsmExportError: ``BAD_OPTION`` for an unknown name, with the nearest; ``NO_SUCH_PATH`` for
            a file that is not there; ``BAD_CONFIG_FILE`` with the line and the rule for a key or a
            value that cannot be used.
    """
    from ssm_export.quantization.recipe_file import parse_recipe

    text = os.fspath(name_or_path)
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or not isinstance(name_or_path, str):
        if not path.is_file():
            raise SsmExportError(
                errors.NO_SUCH_PATH,
                f"there is no recipe file '{text}'",
                where="--recipe",
                fix=f"give a YAML file, or one of {', '.join(recipe_names())}",
            )
        return parse_recipe(path)
    names = recipe_names()
    if text not in names:
        near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise SsmExportError(
            errors.BAD_OPTION,
            f"there is no recipe '{text}'",
            where="--recipe",
            fix=f"{hint}There are {', '.join(names)}; or give a YAML file of your own",
        )
    return parse_recipe(config_dir("quantize") / f"{text}.yaml")


_NOT_ALL: Final = ("lm_head", *(f"backbone.layers.0.mixer.{n}" for n in ("x_proj", "dt_proj")))
"""Sites that only some models have; a pattern for them may stand in a recipe for all."""


def match(recipe: Recipe, names: Iterable[str], family: str) -> dict[str, Rule]:
    """The rule of each site: the first that matches its name.

    Args:
        recipe: the recipe.
        names: the sites of a model, such as ``backbone.layers.3.mixer.in_proj``.
        family: its model type.

    Returns:
        site name to rule, in the order of ``names``; sites that stay floating point are left out.

    Raises:
        SsmExportError: ``BAD_CONFIG_FILE`` where a pattern of a rule for this family matches
            nothing that any model has, or all of its patterns nothing that this one has.
    """
    sites = list(names)
    decided: dict[str, Rule] = {}
    for number, rule in enumerate(recipe.rules, 1):
        if rule.families and family not in rule.families:
            continue
        hits = [site for site in sites if any(fnmatchcase(site, p) for p in rule.tensors)]
        lost = [p for p in rule.tensors if not any(fnmatchcase(s, p) for s in (*sites, *_NOT_ALL))]
        if lost or not hits:
            lost = lost or list(rule.tensors)
            raise SsmExportError(
                errors.BAD_CONFIG_FILE,
                f"it names tensors that do not exist in this {family} model: "
                + ", ".join(f"'{pattern}'" for pattern in lost),
                where=f"recipe {recipe.name}, rule {number}",
                fix=_near_sites(lost, sites),
            )
        for site in hits:
            decided.setdefault(site, rule)
    return {site: decided[site] for site in sites if site in decided and decided[site].quantizes}


def _near_sites(patterns: Iterable[str], sites: Iterable[str]) -> str:
    general = {  # one name for all layers
        ".".join("*" if part.isdigit() else part for part in site.split(".")) for site in sites
    }
    near = [
        name
        for pattern in patterns
        for name in difflib.get_close_matches(pattern, general, n=1, cutoff=0.6)
    ]
    known = ", ".join(sorted(general))
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    return f"{hint}This model has: {known}"
