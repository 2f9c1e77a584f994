"""A number format for each weight, by what each costs: the best quality in a size, or the smallest
size in a quality.

Every candidate of every weight is run alone (sensitivity.py). Independent errors add up in the
divergence, so the choice is a knapsack with one option of each weight, solved exactly on a grid of
bytes; the result is then run as a whole, because the sum is a model and not a measurement.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ssm_export import errors
from ssm_export.documents.tables import size
from ssm_export.errors import SsmExportError
from ssm_export.quantization.apply import Simulated, write_plan
from ssm_export.quantization.calibration import Statistics
from ssm_export.quantization.evaluation import evaluate, json_number
from ssm_export.quantization.knapsack import Knapsack, Option, undominated
from ssm_export.quantization.plan import Plan, WeightKey, make_plan, weight_keys
from ssm_export.quantization.recipe import FLOAT, Mixed, Rule
from ssm_export.quantization.sensitivity import few_rows, probe_costs, weight_probe
from ssm_export.quantization.sites import Sites
from ssm_export.quantization.stream import LayerStream
from ssm_export.quantization.tensors import Tensors

_REPAIRS: Final = 5
_MARGIN: Final = 0.9
"""A repair aims below the budget by this factor more than the measurement asks for."""
_FP16_BYTES: Final = 2
_FLOAT_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Choice:
    """What was chosen for a weight, and why.

    Attributes:
        site: its name.
        chosen: the option taken.
        options: all there were, by size.
        why: in words.
    """

    site: str
    chosen: Option
    options: tuple[Option, ...]
    why: str


@dataclass(frozen=True)
class MixedChoice:
    """The formats of every weight.

    Attributes:
        rules: site to its rule, as a plan is made of.
        plan: made of them.
        choices: in graph order.
        budget: in words.
        share: bytes of all weights, over the bytes of the same weights in fp16.
        predicted_kl: sum of the divergences of the chosen options, bits per token.
        measured_kl: divergence of the whole, on the same float model.
        repairs: how often the sum was found too optimistic and a better choice was made.
    """

    rules: Mapping[str, Rule]
    plan: Plan
    choices: tuple[Choice, ...]
    budget: str
    share: float
    predicted_kl: float
    measured_kl: float
    repairs: int

    def as_json(self) -> dict[str, Any]:
        """A JSON object without rules and plan."""
        return {
            "budget": self.budget,
            "share": self.share,
            "predicted_kl_bits": json_number(self.predicted_kl),
            "measured_kl_bits": json_number(self.measured_kl),
            "repairs": self.repairs,
            "choices": [
                {
                    "site": choice.site,
                    "chosen": choice.chosen.as_json(),
                    "options": [option.as_json() for option in choice.options],
                    "why": choice.why,
                }
                for choice in self.choices
            ],
        }


def candidate_rules(rules: Mapping[str, Rule], sites: Sites, mixed: Mixed) -> dict[str, list[Rule]]:
    """Weight site to its rule in every candidate format, for the sites that take part."""
    return {
        site.name: [_with_format(rules[site.name], scheme) for scheme in mixed.candidates]
        for site in sites.weights
        if site.name in rules and rules[site.name].weights in mixed.candidates
    }


def candidate_keys(
    rules: Mapping[str, Rule], sites: Sites, mixed: Mixed, blocks: Sequence[int]
) -> dict[str, dict[str, WeightKey | None]]:
    """Site to candidate format to its key; None for ``float``. Calibration rounds them all.

    Args:
        rules: site to its rule.
        sites: of the model.
        mixed: of the recipe.
        blocks: blocks of int4 that the target takes.
    """
    keys: dict[str, dict[str, WeightKey | None]] = {}
    for site, variants in candidate_rules(rules, sites, mixed).items():
        for scheme, rule in zip(mixed.candidates, variants, strict=True):
            found, _ = weight_keys({site: rule}, sites, blocks)
            keys.setdefault(site, {})[scheme] = found.get(site)
    return keys


def choose_formats(
    stream: LayerStream,
    mixed: Mixed,
    rules: Mapping[str, Rule],
    sites: Sites,
    tensors: Tensors,
    *,
    blocks: Sequence[int],
    statistics: Statistics | None = None,
    precision: str = "fp32",
) -> MixedChoice:
    """Choose a format for each weight of a recipe with ``mixed``.

    Args:
        stream: the float model on rows; single weights are measured on a few of them, the whole on
            as many as one run of minutes takes.
        mixed: the budget, and the candidates.
        rules: site to its rule, as the recipe has it.
        sites: of the model.
        tensors: codes; those that calibration rounded are in it.
        blocks: blocks of int4 that the target takes.
        statistics: of the activations, where the rules quantize any.
        precision: of the bundle: what stays float is stored in it.

    Raises:
        SsmExportError: ``BAD_CONFIG_FILE`` for a size that even the cheapest candidates exceed,
            ``QUALITY_LOST`` for a divergence that even the dearest exceed.
    """
    keys = candidate_keys(rules, sites, mixed, blocks)
    plain = {site.name: _FLOAT_BYTES[precision] * math.prod(site.shape) for site in sites.weights}
    options = _options(stream, keys, plain, tensors)
    fixed = {name: rule for name, rule in rules.items() if name not in keys}
    rest_keys, _ = weight_keys(fixed, sites, blocks)
    rest = sum(
        tensors.get(rest_keys[name]).nbytes if name in rest_keys else count
        for name, count in plain.items()
        if name not in keys
    )
    in_fp16 = sum(_FP16_BYTES * math.prod(site.shape) for site in sites.weights)

    def planned(chosen: Sequence[Option]) -> tuple[dict[str, Rule], Plan]:
        schemes = {name: option.scheme for name, option in zip(options, chosen, strict=True)}
        made = {
            name: _with_format(rule, schemes[name]) if name in schemes else rule
            for name, rule in rules.items()
        }
        made = {name: rule for name, rule in made.items() if rule.quantizes}
        found, notes = weight_keys(made, sites, blocks)
        return made, make_plan(made, sites, found, statistics, precision, notes)

    checked = LayerStream(stream.bundle, few_rows(stream, 1), progress=stream.progress)

    def divergence(plan: Plan) -> float:
        edits = {"mixed": lambda model: write_plan(model, plan, tensors, Simulated())}
        what = "checking the mixture"
        return evaluate(checked, edits, None, what=what).quality["mixed"].kl_bits

    knapsack = Knapsack(list(options.values()))
    repairs = 0
    if mixed.size is not None:
        budget = f"weights of at most {mixed.size:g} × fp16"
        chosen = knapsack.best_within(math.floor(mixed.size * in_fp16) - rest)
        if chosen is None:
            raise _too_small(mixed, (knapsack.least_bytes + rest) / in_fp16)
        new_rules, plan = planned(chosen)
        measured = divergence(plan)
    else:
        assert mixed.kl is not None
        budget = f"at most {mixed.kl:g} bits per token from the float model"
        base = divergence(_plan_of(fixed, sites, blocks, statistics, precision)) if fixed else 0.0
        chosen, new_rules, plan, measured, repairs = _within_divergence(
            mixed.kl, base, knapsack, planned, divergence
        )
    for schemes in keys.values():
        for key in schemes.values():
            if key is not None and key.rounding == "nearest" and key != plan.weights.get(key.site):
                tensors.drop(key)
    total = rest + sum(option.bytes for option in chosen)
    return MixedChoice(
        rules=new_rules,
        plan=plan,
        choices=tuple(
            Choice(name, option, found, _why(option, found))
            for (name, found), option in zip(options.items(), chosen, strict=True)
        ),
        budget=budget,
        share=total / in_fp16,
        predicted_kl=sum(option.kl_bits for option in chosen),
        measured_kl=measured,
        repairs=repairs,
    )


def _within_divergence(
    limit: float,
    base: float,
    knapsack: Knapsack,
    planned: Callable[[Sequence[Option]], tuple[dict[str, Rule], Plan]],
    divergence: Callable[[Plan], float],
) -> tuple[list[Option], dict[str, Rule], Plan, float, int]:
    """The smallest choice that measures within ``limit``, however optimistic the sum is."""
    target = limit - base
    measured = math.inf
    for repairs in range(_REPAIRS + 1):
        chosen = knapsack.smallest_within(target)
        if chosen is None or repairs == _REPAIRS:
            chosen = knapsack.best()
        rules, plan = planned(chosen)
        measured = divergence(plan)
        if measured <= limit:
            return chosen, rules, plan, measured, repairs
        predicted = sum(option.kl_bits for option in chosen)
        if chosen == knapsack.best() or not math.isfinite(measured):
            break
        target = predicted * (limit - base) / (measured - base) * _MARGIN
    raise SsmExportError(
        errors.QUALITY_LOST,
        f"the recipe allows {limit:g} bits per token of divergence from the float model, and its "
        f"most precise candidates have {measured:.3g}",
        fix="give 'mixed' a larger 'kl', or 'float' as its last candidate",
    )


def _options(
    stream: LayerStream,
    keys: Mapping[str, Mapping[str, WeightKey | None]],
    plain: Mapping[str, int],
    tensors: Tensors,
) -> dict[str, tuple[Option, ...]]:
    """Every option with its bytes and its measured divergence, by size; ``plain`` are the bytes of
    weights that stay float."""
    distinct = {key for schemes in keys.values() for key in schemes.values() if key is not None}
    ordered = sorted(distinct, key=lambda key: tuple(map(str, dataclasses.astuple(key))))
    probes = {str(number): weight_probe(key, tensors) for number, key in enumerate(ordered)}
    costs = probe_costs(stream, probes)
    kl_bits = {key: costs[str(number)][0] for number, key in enumerate(ordered)}
    options: dict[str, tuple[Option, ...]] = {}
    for site, schemes in keys.items():
        found = []
        for scheme, key in schemes.items():
            if key is None:
                found.append(Option(scheme, FLOAT, plain[site], 0.0))
            else:
                stored = f"{key.scheme}/{key.block}" if key.block else key.scheme
                cost = kl_bits[key]
                cost = math.inf if math.isnan(cost) else max(cost, 0.0)
                found.append(Option(scheme, stored, tensors.get(key).nbytes, cost))
        options[site] = tuple(sorted(found, key=lambda option: option.bytes))
    return options


def _with_format(rule: Rule, scheme: str) -> Rule:
    """The rule in a format; a weight that stays float is not rotated either."""
    made = rule.with_weights(scheme)
    if scheme == FLOAT:
        return dataclasses.replace(made, rotate=0, weight_clip="minmax")
    return made


def _plan_of(
    rules: Mapping[str, Rule],
    sites: Sites,
    blocks: Sequence[int],
    statistics: Statistics | None,
    precision: str,
) -> Plan:
    keys, notes = weight_keys(rules, sites, blocks)
    return make_plan(rules, sites, keys, statistics, precision, notes)


def _why(chosen: Option, options: Sequence[Option]) -> str:
    useful = undominated(options)
    if len(useful) == 1:
        return "no other format costs less" if len(options) > 1 else "the only candidate"
    at = useful.index(chosen)
    words = []
    if at:
        below = useful[at - 1]
        words.append(f"over {below.stored}: {_gain(below, chosen)}")
    if at + 1 < len(useful):
        above = useful[at + 1]
        words.append(f"not {above.stored}: {_gain(chosen, above)}")
    return "; ".join(words)


def _gain(below: Option, above: Option) -> str:
    return f"{below.kl_bits - above.kl_bits:.1e} bits for {size(above.bytes - below.bytes)}"


def _too_small(mixed: Mixed, share: float) -> SsmExportError:
    return SsmExportError(
        errors.BAD_CONFIG_FILE,
        f"weights of {mixed.size:g} × fp16 cannot be had: with {mixed.candidates[0]} wherever the "
        f"rules let a format be chosen they are {share:.3f} × fp16",
        where="'mixed', key 'size'",
        fix=f"size: {math.ceil(share * 100) / 100:g}, or cheaper formats in 'candidates' and rules",
    )
