"""Reading a recipe's YAML: every key and value is checked, and an error names its line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from ssm_export import errors
from ssm_export.device_formats import INT4_BLOCKS
from ssm_export.errors import SsmExportError
from ssm_export.quantization.recipe import (
    ACTIVATION_SCHEMES,
    CLIPS,
    FIXED_BLOCKS,
    FLOAT,
    PARTNERS,
    ROUNDINGS,
    STATES,
    WEIGHT_CLIPS,
    WEIGHT_SCHEMES,
    Calibration,
    Mixed,
    Recipe,
    Rule,
)
from ssm_export.resources import config_dir

_BITS: Final = {"int4": 4, "nvfp4": 4, "int8": 8, "fp8": 8, "mxfp8": 8, FLOAT: 16}
_WITH_GPTQ: Final = ("int8", "int4")

_Check = Callable[[Any], Any]


def _one_of(known: tuple[str, ...]) -> _Check:
    def check(value: Any) -> str:
        if value not in known:
            near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(f"is {value!r}{hint}, known are {', '.join(known)}")
        return str(value)

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"is {value!r}, not text")
    return value.strip()


def _texts(value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise ValueError(f"is {value!r}, not a list of names")
    return tuple(_text(item) for item in items)


def _families(value: Any) -> tuple[str, ...]:
    known = tuple(sorted(path.stem for path in config_dir("models").glob("*.yaml")))
    return tuple(_one_of(known)(item) for item in _texts(value))


def _whole(lowest: int) -> _Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(f"is {value!r}, not a whole number from {lowest} on")
        return value

    return check


def _number(above: float, up_to: float) -> _Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"is {value!r}, not a number")
        if not above < value <= up_to:
            raise ValueError(f"is {value}, not above {above:g} and at most {up_to:g}")
        return float(value)

    return check


def _activations(value: Any) -> str:
    if value in FIXED_BLOCKS:
        raise ValueError(
            f"is '{value}', and standard ONNX has no operator that scales inputs block by block; "
            "only weights can have it"
        )
    return str(_one_of(ACTIVATION_SCHEMES)(value))


def _block(value: Any) -> int:
    if isinstance(value, bool) or value not in (0, *INT4_BLOCKS):
        raise ValueError(f"is {value!r}, known are {', '.join(map(str, INT4_BLOCKS))}, 0 for none")
    return int(value)


def _power_of_two(value: Any) -> int:
    number = int(_whole(0)(value))
    if number & (number - 1) or number == 1:
        raise ValueError(f"is {number}, not 0 or a power of two from 2 on")
    return number


def _grouping(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"is {value!r}, not [head clusters, channel clusters]")
    heads, channels = (int(_whole(0)(item)) for item in value)
    if (heads == 0) != (channels == 0):
        raise ValueError(f"is {value!r}: give two numbers from 1 on, or [0, 0] for one scale")
    return heads, channels


_RULE: Final[Mapping[str, _Check]] = {
    "tensors": _texts,
    "weights": _one_of(WEIGHT_SCHEMES),
    "activations": _activations,
    "block": _block,
    "clip": _one_of(CLIPS),
    "percentile": _number(50, 100),
    "weight_clip": _one_of(WEIGHT_CLIPS),
    "rounding": _one_of(ROUNDINGS),
    "rotate": _power_of_two,
    "grouping": _grouping,
    "families": _families,
}
_CALIBRATION: Final[Mapping[str, _Check]] = {"sequences": _whole(1), "tokens": _whole(2)}
_MIXED: Final[Mapping[str, _Check]] = {
    "candidates": lambda value: tuple(_one_of(WEIGHT_SCHEMES)(item) for item in _texts(value)),
    "size": _number(0, 1),
    "kl": _number(0, 100),
}


def _state(value: Any) -> str:
    if value == "bf16":
        refusal = errors.bf16_state()
        raise ValueError(f"is 'bf16', known are {', '.join(STATES)}: {refusal.what}; {refusal.why}")
    return str(_one_of(STATES)(value))


_TOP: Final[Mapping[str, _Check]] = {
    "description": _text,
    "rules": lambda value: value,
    "state": _state,
    "calibration": lambda value: value,
    "mixed": lambda value: value,
    "limit_bits": _number(0, 8),
}


def parse_recipe(path: Path) -> Recipe:
    """Read one recipe.

    Raises:
        SsmExportError: ``BAD_CONFIG_FILE`` that names the line, the rule and the key.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SsmExportError(
            errors.BAD_CONFIG_FILE,
            f"it cannot be read: {' '.join(str(error).split())}",
            where=str(path),
            fix="mend the YAML; the files of configs/quantize are examples",
        ) from error
    top = _Section(path, "the recipe", root).values(_TOP)
    for key in ("description", "rules"):
        if key not in top:
            raise _Section(path, "the recipe", root).bad(f"lacks '{key}'")
    rules = _rules(path, _child(root, "rules"))
    extra: dict[str, Any] = {key: top[key] for key in ("state", "limit_bits") if key in top}
    if "calibration" in top:
        section = _Section(path, "'calibration'", _child(root, "calibration"))
        extra["calibration"] = Calibration(**section.values(_CALIBRATION))
    if "mixed" in top:
        extra["mixed"] = _mixed(_Section(path, "'mixed'", _child(root, "mixed")), rules)
    return Recipe(name=path.stem, description=top["description"], rules=rules, **extra)


class _Section:
    """One mapping of the file, and what errors call it."""

    def __init__(self, path: Path, title: str, node: yaml.Node | None) -> None:
        self.path = path
        self.title = title
        self.node = node

    def bad(self, what: str, line: int | None = None, fix: str = "") -> SsmExportError:
        """The error for something in this section."""
        first = self.node.start_mark.line + 1 if self.node is not None else 1
        return SsmExportError(
            errors.BAD_CONFIG_FILE,
            f"{self.title} {what}",
            where=f"{self.path}, line {line or first}",
            fix=fix or "configs/quantize/README.md describes every key",
        )

    def values(self, checks: Mapping[str, _Check]) -> dict[str, Any]:
        """The section's values by key, each as its check gives it."""
        known = f"the keys here are {', '.join(checks)}"
        if not isinstance(self.node, yaml.MappingNode):
            raise self.bad("holds no keys", fix=known)
        found: dict[str, Any] = {}
        for key_node, value_node in self.node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key not in checks:
                near = difflib.get_close_matches(key, checks, n=1, cutoff=0.6)
                hint = f"did you mean '{near[0]}'? " if near else ""
                raise self.bad(f"has the unknown key '{key}'", line, hint + known)
            if key in found:
                raise self.bad(f"has '{key}' twice", line, "keep one of them")
            try:
                found[key] = checks[key](_plain(value_node))
            except ValueError as error:
                raise self.bad(f"has '{key}', which {error}", line) from error
        return found


def _plain(node: yaml.Node) -> Any:
    """The Python value of a node."""
    try:
        return yaml.safe_load(yaml.serialize(node))
    except yaml.YAMLError as error:
        raise ValueError(f"is no plain value: {' '.join(str(error).split())}") from error


def _child(node: yaml.Node | None, key: str) -> yaml.Node:
    assert isinstance(node, yaml.MappingNode)
    return next(value for name, value in node.value if name.value == key)


def _rules(path: Path, node: yaml.Node) -> tuple[Rule, ...]:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise _Section(path, "'rules'", node).bad("is not a list of rules")
    return tuple(
        _rule(_Section(path, f"rule {number}", item)) for number, item in enumerate(node.value, 1)
    )


def _rule(section: _Section) -> Rule:
    values = section.values(_RULE)
    if "tensors" not in values:
        raise section.bad("lacks 'tensors', the names it is for")
    rule = Rule(**values)
    without_effect = {
        "block": (rule.weights == "int4", "'weights: int4'"),
        "rounding": (
            rule.rounding == "nearest" or rule.weights in _WITH_GPTQ,
            f"weights of {' or '.join(_WITH_GPTQ)}",
        ),
        "weight_clip": (
            rule.weight_clip == "minmax" or rule.weights != FLOAT,
            "weights that are quantized",
        ),
        "clip": (
            rule.clip == "minmax" or rule.activations != FLOAT,
            "activations of int8 or fp8",
        ),
        "percentile": (rule.clip == "percentile", "'clip: percentile'"),
        "grouping": (rule.activations != FLOAT, "activations of int8 or fp8"),
        "rotate": (rule.quantizes, "weights or activations that are quantized"),
    }
    for key, (has_effect, needs) in without_effect.items():
        if key in values and values[key] and not has_effect:
            raise section.bad(
                f"has '{key}: {_shown(values[key])}', which is only for {needs}",
                fix=f"leave '{key}' out of it, or give it {needs}",
            )
    if rule.weights == "int4" and not rule.block:
        raise section.bad(
            "has int4 weights and no 'block'",
            fix=f"block: 128, or another of {', '.join(map(str, INT4_BLOCKS))}",
        )
    _check_partners(section, rule.weights, rule.activations)
    return rule


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _check_partners(section: _Section, weights: str, activations: str) -> None:
    if weights not in PARTNERS[activations]:
        raise section.bad(
            f"has {weights} weights and {activations} activations, which nothing multiplies",
            fix=f"{activations} activations go with weights of "
            f"{' or '.join(PARTNERS[activations])}; {weights} weights with float activations"
            + (f" or {weights} ones" if weights in PARTNERS else ""),
        )


def _mixed(section: _Section, rules: tuple[Rule, ...]) -> Mixed:
    values = section.values(_MIXED)
    candidates = values.get("candidates", ())
    if len(candidates) < 2 or len(set(candidates)) != len(candidates):
        raise section.bad("needs 'candidates', two or more formats of weights")
    bits = [_BITS[scheme] for scheme in candidates]
    if bits != sorted(bits):
        raise section.bad(
            f"has the candidates {', '.join(candidates)}, which do not go from cheap to dear",
            fix=f"candidates: [{', '.join(sorted(candidates, key=lambda name: _BITS[name]))}]",
        )
    if ("size" in values) == ("kl" in values):
        raise section.bad(
            "needs one of 'size' and 'kl'",
            fix="size: 0.35 is a share of the fp16 weights, kl: 0.01 bits per token",
        )
    chosen = [rule for rule in rules if rule.weights in candidates and rule.quantizes]
    if not chosen:
        raise section.bad(
            "has nothing to choose for: no rule has one of the candidates as its weights",
            fix=f"give a rule 'weights: {candidates[0]}'",
        )
    for rule in chosen:
        for scheme in candidates:
            _check_partners(section, scheme, rule.activations)
    return Mixed(**values)
