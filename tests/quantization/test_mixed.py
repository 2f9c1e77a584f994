"""Choices of formats, against every choice there is."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_graph import int4_by_hand, int8_by_hand, replacing, textbook, whole_logits

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.errors import SsmExportError
from ssm_export.quantization import knapsack, mixed
from ssm_export.quantization.knapsack import Knapsack, Option
from ssm_export.quantization.mixed import candidate_keys, choose_formats
from ssm_export.quantization.plan import WeightKey
from ssm_export.quantization.recipe import Mixed, Rule
from ssm_export.quantization.sensitivity import probe_costs
from ssm_export.quantization.sites import find_sites
from ssm_export.quantization.stream import LayerStream
from ssm_export.quantization.tensors import Tensors

BLOCK = 16
SIZE = 0.9
CANDIDATES = ("int4", "int8", "float")

options = st.builds(
    Option,
    st.just("a"),
    st.just("a"),
    st.integers(0, 400),
    st.integers(0, 1 << 20).map(lambda n: n / (1 << 20)),  # sums of these are exact
)
problems = st.lists(st.lists(options, min_size=1, max_size=3), min_size=1, max_size=5)


def every_choice(items):
    """(bytes, divergence) of all of them."""
    for choice in itertools.product(*items):
        yield sum(o.bytes for o in choice), sum(o.kl_bits for o in choice)


def cost(choice):
    return sum(o.bytes for o in choice), sum(o.kl_bits for o in choice)


@given(problems, st.integers(0, 2000))
@settings(deadline=None)
def test_the_least_divergence_in_a_size(items, budget):
    chosen = Knapsack(items).best_within(budget)
    fitting = [kl for size, kl in every_choice(items) if size <= budget]
    if not fitting:
        assert chosen is None
        return
    assert cost(chosen)[0] <= budget
    assert cost(chosen)[1] == min(fitting)
    assert all(option in item for option, item in zip(chosen, items, strict=True))


@given(problems, st.floats(0, 5))
@settings(deadline=None)
def test_the_least_size_with_a_divergence(items, limit):
    chosen = Knapsack(items).smallest_within(limit)
    fitting = [size for size, kl in every_choice(items) if kl <= limit]
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        assert cost(chosen)[1] <= limit
        assert cost(chosen)[0] == min(fitting)


@given(problems, st.integers(0, 2000))
@settings(deadline=None)
def test_a_coarse_grid_never_exceeds_the_size(items, budget):
    """Each item may be rounded up by less than one cell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "_CELLS", 20)
        found = Knapsack(items)
    chosen = found.best_within(budget)
    smallest = sum(min(o.bytes for o in item) for item in items)
    assert (chosen is None) == (budget < smallest)
    if chosen is not None:
        assert cost(chosen)[0] <= budget
        span = sum(max(o.bytes for o in item) for item in items) - smallest
        spare = len(items) * math.ceil(span / 20 + 1)
        nearly = [kl for size, kl in every_choice(items) if size <= budget - spare]
        assert cost(chosen)[1] <= min(nearly, default=math.inf)


@pytest.fixture(scope="module")
def bundle(bundle_of):
    return Bundle.open(bundle_of("mamba2"))


@pytest.fixture(scope="module")
def sites(bundle):
    return find_sites(ir.load(bundle.graph_path("prefill", "canonical")))


@pytest.fixture(scope="module")
def rows(bundle):
    return np.random.default_rng(3).integers(0, bundle.manifest.sizes["V"], (4, 8))


@pytest.fixture(scope="module")
def stream(bundle, rows):
    return LayerStream(bundle, rows)


@pytest.fixture(scope="module")
def tensors(bundle, sites):
    return Tensors(ir.load(bundle.graph_path("prefill", "canonical")), sites, "fp32")


@pytest.fixture(scope="module")
def rules(sites):
    """int4 or another for the layers, int8 for the head, the embedding as it is."""
    linear = Rule(("*proj",), weights="int4", block=BLOCK)
    made = {site.name: linear for site in sites.weights if not site.is_vocabulary}
    return {**made, "lm_head": Rule(("lm_head",), weights="fp8")}


@pytest.fixture(scope="module")
def measured(stream, rules, sites, tensors):
    """A size that was chosen for, and what every probe of it cost."""
    costs = {}

    def measure(*args):
        costs.update(probe_costs(*args))
        return costs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixed, "probe_costs", measure)
        found = chosen_for(stream, Mixed(CANDIDATES, size=SIZE), rules, sites, tensors)
    return found, costs


def chosen_for(stream, budget, rules, sites, tensors):
    return choose_formats(stream, budget, rules, sites, tensors, blocks=(16, 32))


def by_hand(found, sites):
    """The edit of a whole graph that the choice stands for, with the head in fp8."""
    import ml_dtypes

    def fp8(weight):
        scale = np.float32(np.abs(weight).max() / 448)
        return (weight / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale

    functions = {
        "int4": lambda weight: int4_by_hand(weight, BLOCK),
        "int8": int8_by_hand,
        "float": lambda weight: weight,
    }
    weights = {f"{c.site}.weight": functions[c.chosen.scheme] for c in found.choices}
    return replacing({**weights, "lm_head.weight": fp8})


def stored_bytes(found, sites):
    """Bytes of all weights, counted from shapes; scales in fp32, as the bundle's precision is."""
    schemes = {c.site: c.chosen.scheme for c in found.choices} | {"lm_head": "fp8"}
    total = 0
    for site in sites.weights:
        inputs, outputs = site.shape
        total += {
            "int4": inputs * outputs // 2 + 4 * inputs // BLOCK * outputs,
            "int8": inputs * outputs + 4 * outputs,
            "fp8": inputs * outputs + 4,
            "float": 4 * inputs * outputs,
        }[schemes.get(site.name, "float")]
    return total / sum(2 * math.prod(site.shape) for site in sites.weights)


def test_a_size_is_kept_with_the_least_divergence(bundle, rows, sites, measured):
    found, _ = measured
    assert len(found.choices) == 6
    assert len({choice.chosen.scheme for choice in found.choices}) > 1
    assert found.share == pytest.approx(stored_bytes(found, sites), rel=1e-9)
    assert found.share <= SIZE
    # Of all 729 choices no other fits and diverges less.
    mine = sum(choice.chosen.bytes for choice in found.choices)
    whole = sum(2 * math.prod(site.shape) for site in sites.weights)
    room = SIZE * whole - (found.share * whole - mine)
    fitting = [kl for size, kl in every_choice([c.options for c in found.choices]) if size <= room]
    assert found.predicted_kl == pytest.approx(min(fitting), rel=1e-12)
    # What it reports of the whole is what the whole graph does.
    reference = whole_logits(bundle, rows)
    logits = whole_logits(bundle, rows, by_hand(found, sites))
    expected = textbook(rows, reference, logits)[1].mean()
    assert found.measured_kl == pytest.approx(expected, rel=5e-3)
    assert set(found.plan.weights) == {
        *(c.site for c in found.choices if c.chosen.scheme != "float"),
        "lm_head",
    }


def test_the_same_twice(stream, rules, sites, tensors, measured):
    first, _ = measured
    second = chosen_for(stream, Mixed(CANDIDATES, size=SIZE), rules, sites, tensors)
    assert first.as_json() == second.as_json()
    json.dumps(first.as_json(), allow_nan=False)


@pytest.fixture(scope="module")
def limits(bundle, rows, sites):
    """Divergence of the whole with the head alone quantized, and with int4 everywhere."""
    reference = whole_logits(bundle, rows)

    class Choices:
        choices = ()

    def divergence(edit):
        return textbook(rows, reference, whole_logits(bundle, rows, edit))[1].mean()

    head = by_hand(Choices, sites)
    names = [f"{site.name}.weight" for site in sites.weights if not site.is_vocabulary]
    layers = replacing(dict.fromkeys(names, lambda weight: int4_by_hand(weight, BLOCK)))
    return divergence(head), divergence(lambda model: (head(model), layers(model)))


@pytest.mark.parametrize("optimism", [1.0, 0.05])
def test_a_divergence_is_kept_even_where_the_sum_is_too_optimistic(
    bundle, rows, stream, rules, sites, tensors, limits, measured, monkeypatch, optimism
):
    hopeful = {name: (kl * optimism, snr) for name, (kl, snr) in measured[1].items()}
    monkeypatch.setattr(mixed, "probe_costs", lambda *args: hopeful)
    base, worst = limits
    limit = base + (worst - base) / 4
    found = chosen_for(stream, Mixed(CANDIDATES, kl=limit), rules, sites, tensors)
    logits = whole_logits(bundle, rows, by_hand(found, sites))
    actual = textbook(rows, whole_logits(bundle, rows), logits)[1].mean()
    assert found.measured_kl == pytest.approx(actual, rel=5e-3)
    assert found.measured_kl <= limit
    assert {"float"} != {choice.chosen.scheme for choice in found.choices}
    assert (found.repairs > 0) == (optimism < 1)


def test_budgets_that_cannot_be_had(stream, rules, sites, tensors, limits, measured, monkeypatch):
    monkeypatch.setattr(mixed, "probe_costs", lambda *args: measured[1])
    with pytest.raises(SsmExportError, match=r"0\.2 × fp16 cannot be had.*size: 0\.") as caught:
        chosen_for(stream, Mixed(CANDIDATES, size=0.2), rules, sites, tensors)
    assert caught.value.code is errors.BAD_CONFIG_FILE
    with pytest.raises(SsmExportError, match="larger 'kl'") as caught:
        chosen_for(stream, Mixed(CANDIDATES, kl=limits[0] / 10), rules, sites, tensors)
    assert caught.value.code is errors.QUALITY_LOST


def test_every_candidate_has_a_key_for_calibration_to_round(sites):
    rule = Rule(("*",), weights="int4", block=BLOCK, rounding="gptq", rotate=16)
    rules = {"backbone.layers.0.mixer.out_proj": rule, "lm_head": Rule(("*",), weights="fp8")}
    keys = candidate_keys(rules, sites, Mixed((*CANDIDATES,), size=0.5), (16,))
    name = "backbone.layers.0.mixer.out_proj"
    assert keys == {
        name: {
            "int4": WeightKey(name, "int4", BLOCK, 16, "gptq"),
            "int8": WeightKey(name, "int8", 0, 16, "gptq"),
            "float": None,
        }
    }
