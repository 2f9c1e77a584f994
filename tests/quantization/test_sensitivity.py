"""Each tensor alone, against the whole graph with that one tensor put through numpy."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from whole_graph import int4_by_hand, int8_by_hand, replacing, textbook, whole_logits

from ssm_export.bundle import Bundle
from ssm_export.quantization import sensitivity
from ssm_export.quantization.plan import ActivationPlan, Plan, WeightKey
from ssm_export.quantization.sensitivity import few_rows, probe_costs, sensitivities, weight_probe
from ssm_export.quantization.sites import find_sites
from ssm_export.quantization.stream import LayerStream
from ssm_export.quantization.tensors import Tensors

OUT = "backbone.layers.1.mixer.out_proj"
IN = "backbone.layers.0.mixer.in_proj"
SCALE = 0.02
TURN = 16


@pytest.fixture(scope="module")
def bundle(bundle_of, family):
    return Bundle.open(bundle_of(family))


@pytest.fixture(scope="module")
def rows(bundle):
    return np.random.default_rng(8).integers(0, bundle.manifest.sizes["V"], (3, 8))


@pytest.fixture(scope="module")
def logits(bundle, rows):
    return whole_logits(bundle, rows)


@pytest.fixture(scope="module")
def tensors(bundle):
    model = ir.load(bundle.graph_path("prefill", "canonical"))
    return Tensors(model, find_sites(model), bundle.manifest.precision)


def turn(width):
    """The block-diagonal Hadamard matrix, from Kronecker products."""
    matrix = np.eye(1)
    while len(matrix) < TURN:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    return np.kron(np.eye(width // TURN), matrix / math.sqrt(TURN)).astype(np.float32)


def activation_by_hand(model):
    """x → round(x·R/s)·s·Rᵀ in front of a product, in the whole graph."""
    node = next(n for n in model.graph if n.op_type == "MatMul" and str(n.name).startswith(OUT))
    matrix = turn(node.inputs[1].shape[0])
    value = node.inputs[0]

    def constant(name, array):
        made = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        made.type, made.shape = value.type, ir.Shape(list(array.shape))
        model.graph.initializers[name] = made
        return made

    scale = constant("by_hand.scale", np.float32(SCALE))
    ends = [constant(f"by_hand.{n}", np.float32(n)) for n in (-128, 127)]
    there, back = constant("by_hand.R", matrix), constant("by_hand.Rt", matrix.T.copy())
    chain = [
        ("MatMul", [there]),
        ("Div", [scale]),
        ("Round", []),
        ("Clip", ends),
        ("Mul", [scale]),
        ("MatMul", [back]),
    ]
    for number, (op, others) in enumerate(chain):
        made = ir.node(op, [value, *others], name=f"by_hand.{number}")
        made.outputs[0].name = f"by_hand.value.{number}"
        made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
        model.graph.insert_before(node, made)
        value = made.outputs[0]
    node.replace_input_with(0, value)


def rotated_by_hand(weight):
    """Rᵀ·W through int4; R is put in front of it by :func:`rotating`."""
    matrix = turn(len(weight))
    return matrix @ int4_by_hand(matrix.T @ weight, 16)


def test_each_tensor_alone_costs_what_the_whole_graph_says(bundle, rows, logits, tensors):
    node = tensors.site(OUT).product.node
    value = tensors.input_of(OUT)
    plan = Plan(
        {
            IN: WeightKey(IN, "int8"),
            OUT: WeightKey(OUT, "int4", 16, rotate=TURN),
        },
        (ActivationPlan(OUT, value, ((node, 0),), TURN, "int8", SCALE),),
    )
    found = sensitivities(LayerStream(bundle, rows), plan, tensors)
    edits = {
        (IN, "weights int8"): replacing({f"{IN}.weight": int8_by_hand}),
        # Rotating the input and the weight of a product changes nothing but the rounding.
        (OUT, "weights int4/16, rotated 16"): replacing({f"{OUT}.weight": rotated_by_hand}),
        (OUT, "activation int8"): activation_by_hand,
    }
    assert {(s.site, s.what) for s in found} == set(edits)
    for one in found:
        changed = whole_logits(bundle, rows, edits[one.site, one.what])
        expected = textbook(rows, logits, changed)[1].mean()
        assert expected > 1e-7
        assert one.kl_bits == pytest.approx(expected, rel=2e-3), one
        assert 5 < one.snr_db < 90
    costs = [one.kl_bits for one in found]
    assert costs == sorted(costs, reverse=True)


def test_a_head_shows_in_the_logits(bundle, rows, logits, tensors):
    """A head of its own has no layer behind it; one that is the embedding too shows there first."""
    name = [site.name for site in find_sites_of(bundle).weights if site.is_vocabulary][-1]
    probe = {name: weight_probe(WeightKey(name, "int8"), tensors)}
    kl, snr = probe_costs(LayerStream(bundle, rows), probe)[name]

    def by_row(weight):
        return int8_by_hand(weight.T).T

    changed = whole_logits(bundle, rows, replacing({f"{name}.weight": by_row}))
    assert kl == pytest.approx(textbook(rows, logits, changed)[1].mean(), rel=2e-3)
    if name == "lm_head":
        error = changed - logits
        used = slice(None, -1)  # the last position of a row has no next token
        expected = 10 * np.log10((logits[:, used] ** 2).sum() / (error[:, used] ** 2).sum())
        assert snr == pytest.approx(expected, abs=0.02)


def find_sites_of(bundle):
    return find_sites(ir.load(bundle.graph_path("prefill", "canonical")))


def test_groups_of_probes_give_what_one_walk_gives(bundle, rows, tensors):
    names = [IN, OUT, "backbone.layers.2.mixer.in_proj"]
    probes = {name: weight_probe(WeightKey(name, "int4", 16), tensors) for name in names}
    stream = LayerStream(bundle, rows)
    assert probe_costs(stream, probes, hidden_bytes=1) == probe_costs(stream, probes)


@pytest.mark.parametrize(
    ("operations", "shape"),
    [(1e18, (40, 8)), (None, (12, 8)), (1.0, (8, 8))],
)
def test_fewer_rows_where_there_are_many_probes(bundle, monkeypatch, operations, shape):
    rows = np.arange(320).reshape(40, 8) % 97
    stream = LayerStream(bundle, rows)
    parameters = bundle.manifest.sizes["parameters"]
    probes = 50
    wanted = operations or 100 * probes * parameters / 2  # 100 tokens through half of the model
    monkeypatch.setattr(sensitivity, "_OPERATIONS", wanted)
    found = few_rows(stream, probes)
    assert found.shape == shape
    np.testing.assert_array_equal(found, rows[: shape[0]])


def test_a_long_row_is_cut(bundle, monkeypatch):
    monkeypatch.setattr(sensitivity, "_OPERATIONS", 1.0)
    rows = np.arange(600).reshape(2, 300) % 97
    np.testing.assert_array_equal(few_rows(LayerStream(bundle, rows), 9), rows[:1, :64])
