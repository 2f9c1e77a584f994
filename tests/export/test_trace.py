"""The canonical graphs: what is in them, how they are named, what they do not contain."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from families import tiny_values

from ssm_export.lowering import attach_bodies
from ssm_export.models import family as family_of
from ssm_export.trace import build_fake, trace

torch = pytest.importorskip("torch")
FORMS = ("step", "prefill")


def traced(family: str, form: str, *, ragged: bool = False, all_logits: bool = False, **changes):
    model_class = family_of(family)
    config = model_class.config_class.from_dict({**tiny_values(family), **changes})
    model, mode = build_fake(lambda: model_class(config))
    return model, trace(model, mode, form, ragged=ragged, all_logits=all_logits)


KINDS = [(form, ragged) for form in FORMS for ragged in (False, True)]


@pytest.fixture(scope="module", params=KINDS)
def graph(request, family):
    form, ragged = request.param
    model, made = traced(family, form, ragged=ragged)
    return model, form, ragged, made


def test_the_interface_is_complete(graph):
    model, form, ragged, made = graph
    states = model.states()
    expected = ["input_ids", *(["sequence_lengths"] if ragged else [])]
    assert [v.name for v in made.graph.inputs] == expected + [s.name_in for s in states]
    assert [v.name for v in made.graph.outputs] == ["logits"] + [s.name_out for s in states]
    ports = (*made.graph.inputs, *made.graph.outputs)
    shapes = {v.name: tuple(d if isinstance(d, int) else str(d) for d in v.shape) for v in ports}
    assert shapes["input_ids"] == ("batch", 1 if form == "step" else "time")
    assert shapes["logits"] == ("batch", 1, model.config.vocab_size)
    for state in states:
        assert shapes[state.name_in] == shapes[state.name_out] == tuple(state.shape)


def test_every_scan_is_one_node_per_layer(graph):
    model, _, _, made = graph
    calls = [node for node in made.graph if node.domain == "ssm_export"]
    assert len(calls) == 2 * model.config.num_hidden_layers
    assert not [node.op_type for node in made.graph if node.op_type in ("Loop", "Scan", "If")]


def test_names_say_where_a_node_comes_from(graph):
    model, _, _, made = graph
    names = [node.name for node in made.graph]
    assert len(set(names)) == len(names)
    for layer in range(model.config.num_hidden_layers):
        assert f"backbone.layers.{layer}.mixer.in_proj/MatMul" in names
    assert not [name for name in made.graph.initializers if name.startswith("val_")]


def test_parameters_are_initializers_under_their_own_names(graph):
    model, _, _, made = graph
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {
        name: tuple(value.shape)
        for name, value in made.graph.initializers.items()
        if value.const_value is None
    }
    assert found == parameters


def test_constants_are_small(graph):
    *_, made = graph
    for value in made.graph.initializers.values():
        if value.const_value is not None:
            assert value.const_value.size <= 16, value.name


def test_both_forms_name_the_same_parameters(family):
    _, step = traced(family, "step")
    _, prefill = traced(family, "prefill")
    names = [
        {name for name, v in made.graph.initializers.items() if v.const_value is None}
        for made in (step, prefill)
    ]
    assert names[0] == names[1]


def test_layers_cost_no_tracing(family):
    """Twelve layers are traced as one; the graph still has each of them."""
    few, deep = (traced(family, "prefill", num_hidden_layers=n)[1] for n in (1, 12))
    tail = few.graph.num_nodes() - (deep.graph.num_nodes() - few.graph.num_nodes()) // 11
    assert tail > 0
    assert (deep.graph.num_nodes() - tail) == 12 * (few.graph.num_nodes() - tail)


def test_canonical_graph_passes_the_checker(graph):
    model, form, _, made = graph
    copy = made.clone()
    for name, parameter in model.named_parameters():
        value = copy.graph.initializers[name]
        value.const_value = ir.tensor(np.zeros(tuple(parameter.shape), np.float32), name=name)
    attach_bodies(copy, form)
    onnx.checker.check_model(ir.to_proto(copy), full_check=False)


def test_all_logits(family):
    _, made = traced(family, "prefill", all_logits=True)
    logits = made.graph.outputs[0]
    assert str(logits.shape[1]) == "time"
