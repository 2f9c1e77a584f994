"""The plugin graph: what its nodes carry, and that it still computes the model."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_evaluator import GatherElements

from ssm_export.bundle import Bundle
from ssm_export.lowering import PLUGIN_DOMAIN, Lowered, fuse_calls, lower_for_plugin
from ssm_export.ops import Call, OpSpec, all_ops, fused_ops

SPECS = all_ops() | fused_ops()
STAMPS = dict.fromkeys(("plugin_namespace", "plugin_version", "kernels"))


def ports_as_image(spec: OpSpec, call: Call) -> bytes:
    """In the place of compiled kernels: the ports that are there, which a real image names too."""
    return " ".join(port.name for port in spec.inputs if port.name in call.present).encode()


def lowered(bundle: Bundle) -> Lowered:
    return lower_for_plugin(ir.load(bundle.graph_path("prefill", "canonical")), ports_as_image)


def as_reference_operator(spec: OpSpec) -> type[OpRun]:
    """An operator of ONNX's evaluator that reads its ports as the plugin does."""

    def run(self: OpRun, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        ports = base64.b64decode(attributes["kernels"]).decode().split()
        given = {name: attributes[name] for name in spec.attributes}
        found = spec.reference(dict(zip(ports, inputs, strict=True)), given)
        return tuple(found[port.name].astype(inputs[0].dtype) for port in spec.outputs)

    return type(spec.name, (OpRun,), {"op_domain": PLUGIN_DOMAIN, "_run": run})


@pytest.fixture
def bundle(family, bundle_of) -> Bundle:
    return Bundle.open(bundle_of(family, ragged=True))


def test_every_scan_is_stamped_and_no_function_stays(bundle):
    canonical = ir.load(bundle.graph_path("prefill", "canonical"))
    before = ir.to_proto(canonical).SerializeToString()
    made = lower_for_plugin(canonical, ports_as_image)
    assert ir.to_proto(canonical).SerializeToString() == before
    proto = ir.to_proto(made.model)
    path = bundle.path / "onnx" / "unified.checked.onnx"
    onnx.save(proto, path)
    onnx.checker.check_model(str(path))
    path.unlink()
    assert not proto.functions
    nodes = [node for node in proto.graph.node if node.domain]
    assert {node.domain for node in nodes} == {PLUGIN_DOMAIN}
    calls = [node for node in canonical.graph if node.domain]
    apart = {"ConvSsdScan": ["CausalConv1d", "SsdScan"]}
    found = [op for node in nodes for op in apart.get(node.op_type, [node.op_type])]
    assert found == [node.op_type for node in calls]
    stamped = [count for what, count in made.counts.items() if what.endswith(" to plugin")]
    assert sum(stamped) == len(nodes) > 0
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_namespace"] == b"ssm_export"
        assert attributes["plugin_version"] == b"1"
        assert all(node.input), "an input that is left out would reach the parser"
        ports = base64.b64decode(attributes["kernels"]).decode().split()
        assert len(ports) == len(node.input)
        known = {**SPECS[node.op_type].attributes, **STAMPS}
        assert set(attributes) == set(known)
        assert not node.metadata_props


def test_time_stays_symbolic_so_that_one_engine_serves_both_forms(bundle):
    proto = ir.to_proto(lowered(bundle).model)
    shapes = {i.name: i.type.tensor_type.shape.dim for i in proto.graph.input}
    assert [dim.dim_param for dim in shapes["input_ids"]] == ["batch", "time"]


def test_equal_calls_are_asked_for_once(bundle):
    asked = []
    model = ir.load(bundle.graph_path("prefill", "canonical"))
    lower_for_plugin(model, lambda spec, call: asked.append(spec.name) or b"image")
    assert len(asked) == len(set(asked)), "the layers of these models are alike"


@pytest.mark.parametrize("kind", ["prefill", "ragged"])
def test_the_graph_computes_the_model(bundle, kind):
    path = bundle.path / "onnx" / "unified.test.onnx"
    ir.save(lowered(bundle).model, path)
    operators = [as_reference_operator(spec) for spec in SPECS.values()]
    operators.append(GatherElements)
    evaluator = ReferenceEvaluator(onnx.load(path), new_ops=operators)
    path.unlink()
    recordings = [e for e in bundle.manifest.parity if e.kind == kind and e.tokens <= 100]
    entry = max(recordings, key=lambda entry: entry.tokens)
    with np.load(bundle.file(entry.file)) as case:
        recorded = dict(case)
    batch, time = recorded["input_ids"].shape
    feeds = {
        state.name_in: np.zeros([batch, *state.shape[1:]], np.float32)
        for state in bundle.manifest.states
    }
    feeds["input_ids"] = recorded["input_ids"]
    lengths = recorded.get("sequence_lengths", np.full(batch, time))
    feeds["sequence_lengths"] = lengths.astype(np.int32)
    names = [output.name for output in evaluator.proto_.graph.output]
    found = dict(zip(names, evaluator.run(None, feeds), strict=True))
    for state in bundle.manifest.states:
        np.testing.assert_allclose(
            found[state.name_out], recorded[state.name_in], rtol=2e-4, atol=2e-5
        )
    rows = [row for row in range(batch) if lengths[row]]
    last = recorded["logits"][rows, lengths[rows] - 1]
    np.testing.assert_allclose(found["logits"][rows, 0], last, rtol=2e-4, atol=2e-4)


@pytest.fixture
def mamba2(bundle_of) -> ir.Model:
    return ir.load(Bundle.open(bundle_of("mamba2", ragged=True)).graph_path("prefill", "canonical"))


def nodes_of(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op]


def test_convolution_and_scan_become_one_call(mamba2):
    layers = len(nodes_of(mamba2, "SsdScan"))
    splits, before = len(nodes_of(mamba2, "Split")), list(mamba2.graph.outputs)
    names = [value.name for value in before]
    made = lower_for_plugin(mamba2, ports_as_image)
    assert made.counts == {
        "CausalConv1d and SsdScan to ConvSsdScan": layers,
        "ConvSsdScan to plugin": layers,
    }
    assert len(nodes_of(made.model, "Split")) == splits - layers
    assert [value.name for value in made.model.graph.outputs] == names
    assert len(nodes_of(mamba2, "SsdScan")) == layers, "the canonical graph is not changed"


def test_a_fused_graph_is_lowered_as_it_is(mamba2):
    """Kernels are compiled for a graph that is fused already."""
    whole = lower_for_plugin(mamba2, ports_as_image).model
    assert fuse_calls(mamba2) == len(nodes_of(mamba2, "ConvSsdScan")) > 0
    assert fuse_calls(mamba2) == 0
    again = lower_for_plugin(mamba2, ports_as_image).model
    assert ir.to_proto(again) == ir.to_proto(whole)


def split_after(model: ir.Model) -> ir.Node:
    """The split between the first convolution and its scan."""
    (use,) = nodes_of(model, "CausalConv1d")[0].outputs[0].uses()
    return use.node


def reader(value: ir.Value) -> ir.Node:
    (use,) = value.uses()
    return use.node


def add_reader(model: ir.Model, value: ir.Value) -> None:
    model.graph.append(ir.Node("", "Identity", [value]))


def give_out(model: ir.Model, value: ir.Value) -> None:
    model.graph.outputs.append(value)


def put_constant(model: ir.Model, node: ir.Node, numbers: list[int]) -> None:
    """Other integers as a node's second input."""
    value = ir.Value(name="other", const_value=ir.tensor(np.array(numbers), name="other"))
    model.graph.register_initializer(value)
    node.replace_input_with(1, value)


def exchange_outputs(split: ir.Node) -> None:
    """Let B and C read each other's part."""
    B, C = (reader(value) for value in split.outputs[1:])
    B.replace_input_with(0, split.outputs[2])
    C.replace_input_with(0, split.outputs[1])


CHANGES = {
    "the convolution is read elsewhere": lambda m, s: add_reader(m, s.inputs[0]),
    "the convolution is an output": lambda m, s: give_out(m, s.inputs[0]),
    "a part is read elsewhere": lambda m, s: add_reader(m, s.outputs[1]),
    "a part is an output": lambda m, s: give_out(m, s.outputs[2]),
    "x is read elsewhere": lambda m, s: add_reader(m, reader(s.outputs[0]).outputs[0]),
    "B and C are exchanged": lambda m, s: exchange_outputs(s),
    "another axis is split": lambda m, s: s.attributes.add(ir.AttrInt64("axis", 1)),
    "other parts": lambda m, s: put_constant(m, s, [48, 64, 48]),
    "another shape": lambda m, s: put_constant(m, reader(s.outputs[0]), [0, -1, 4, 16]),
    "a shape that is computed": lambda m, s: reader(s.outputs[0]).replace_input_with(
        1, nodes_of(m, "CausalConv1d")[0].inputs[4]
    ),
    "other lengths": lambda m, s: s.inputs[0].producer().replace_input_with(4, None),
    "another activation function between": lambda m, s: s.replace_input_with(
        0, insert(m, s, "Sigmoid", s.inputs[0])
    ),
}


def insert(model: ir.Model, before: ir.Node, op: str, value: ir.Value) -> ir.Value:
    node = ir.Node("", op, [value])
    model.graph.insert_before(before, node)
    return node.outputs[0]


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_fits_exactly_is_fused(mamba2, change):
    layers = len(nodes_of(mamba2, "SsdScan"))
    CHANGES[change](mamba2, split_after(mamba2))
    assert fuse_calls(mamba2) == layers - 1
    assert len(nodes_of(mamba2, "SsdScan")) == len(nodes_of(mamba2, "CausalConv1d")) == 1


def test_without_row_lengths(bundle_of):
    path = Bundle.open(bundle_of("mamba2")).graph_path("prefill", "canonical")
    made = lower_for_plugin(ir.load(path), ports_as_image)
    fused = nodes_of(made.model, "ConvSsdScan")
    assert fused
    for node in fused:
        ports = base64.b64decode(node.attributes["kernels"].value).decode().split()
        assert "past_ssm" in ports and "sequence_lengths" not in ports
