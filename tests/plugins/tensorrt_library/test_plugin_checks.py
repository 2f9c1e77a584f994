"""What the builder asks of a plugin, and the calls it must refuse, naming the op and the tensor."""

from __future__ import annotations

import base64

import pytest
from fake_gpu import FakeGpu
from node_runs import fields_of, in_profile, make_node, plan_of, tensor_of
from plugin_harness import OTHER_FORMAT, FieldValue, Harness, Phase, Tensor

from ssm_export.ops import all_ops, fused_ops, get
from ssm_export_plugins.plan import Plan

CONV = get("CausalConv1d")
LEAST, MOST = {"B": 1, "T": 1}, {"B": 4, "T": 128}


@pytest.fixture
def plan() -> Plan:
    return plan_of(CONV, "float16")


def profile(plan: Plan, least: dict = LEAST, most: dict = MOST) -> tuple[list, list]:
    return (
        [in_profile(o, least, most) for o in plan.inputs],
        [in_profile(o, least, most) for o in plan.outputs],
    )


def test_every_operator_has_a_creator(harness: Harness) -> None:
    """Under its name, in our namespace, asking the parser for all of its attributes."""
    found = {(name, space): (version, fields) for name, version, space, *fields
             in harness.creators()}  # fmt: skip
    for spec in (all_ops() | fused_ops()).values():
        version, fields = found[spec.name, "ssm_export"]
        assert version == "1"
        assert {*spec.attributes, "kernels"} <= set(fields)
    for name in ("LinearRecurrence", "LtiScan", "GatedDeltaRule"):
        assert (name, "ssm_export") in found
    for name in ("LinearAttention", "CausalConvWithState"):
        assert found[name, ""][0] == "1"


def test_types_and_shapes(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    plugin = make_node(harness, gpu, plan).plugin
    types = [o.type for o in plan.inputs]
    assert plugin.output_types(types) == ["float16", "float16"]
    inputs, _ = profile(plan)
    assert plugin.output_shapes(inputs) == "0.0 0.1 24, 0.0 3 24"
    fixed = [tensor_of(o, {"B": 2, "T": 65}) for o in plan.inputs]
    assert plugin.output_shapes(fixed) == "2 65 24, 2 3 24"


def test_exactly_the_types_of_the_plan(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    plugin = make_node(harness, gpu, plan).plugin
    inputs, outputs = profile(plan)
    tensors = [*inputs, *outputs]
    for position, tensor in enumerate(tensors):
        assert plugin.supports(position, tensors, len(inputs))
        other = "float32" if tensor.type == "float16" else "int64"
        for wrong in (Tensor(other, tensor.shape),
                      Tensor(tensor.type, tensor.shape, format=OTHER_FORMAT)):  # fmt: skip
            changed = [*tensors[:position], wrong, *tensors[position + 1 :]]
            assert not plugin.supports(position, changed, len(inputs))
    assert plugin.output_types(["float32"] * len(inputs)) is None
    assert "CausalConv1d 'layer.0' output types" in harness.errors()


def test_workspace_at_the_largest_sizes(harness: Harness, gpu: FakeGpu) -> None:
    for spec in (s for s in all_ops().values() if s.name == "SsdScan"):
        plan = plan_of(spec)
        plugin = make_node(harness, gpu, plan).plugin
        for most in ({"B": 1, "T": 1}, {"B": 3, "T": 1000}):
            bytes_of = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4}
            wanted = 0
            for space in plan.workspaces():
                size = space.elements.value(most) * bytes_of[space.type]
                wanted += -(-size // 256) * 256
            assert plugin.workspace(*profile(plan, LEAST, most)) == wanted


WRONG_SHAPES = [
    ("x", (2, 65), "(2, 65) float16, the kernels take x (B, T, 24) float16"),
    ("x", (2, 0, 24), "T is 0, it must be at least 1"),
    ("x", (0, 65, 24), "B is 0, it must be at least 1"),
    ("x", (2, 65, 25), "input 'x' is (2, 65, 25) float16"),
    ("weight", (24, 5), "the kernels take weight (24, 4) float16"),
    ("past", (2, 24, 3), "the kernels take past (B, 3, 24) float16"),
    ("past", (3, 3, 24), "input 'past' is (3, 3, 24) float16, but B is 2"),
]


@pytest.mark.parametrize(("port", "shape", "said"), WRONG_SHAPES)
def test_wrong_shapes(
    port: str, shape: tuple[int, ...], said: str, harness: Harness, gpu: FakeGpu, plan: Plan
) -> None:
    context = make_node(harness, gpu, plan).attach()
    sizes = {"B": 2, "T": 65}
    inputs = [Tensor(o.type, shape) if o.name == port else tensor_of(o, sizes)
              for o in plan.inputs]  # fmt: skip
    outputs = [tensor_of(o, sizes) for o in plan.outputs]
    for check in (context.plugin.shapes, context.plugin.configure):
        assert not check(inputs, outputs)
        message = harness.errors()
        assert said in message and "CausalConv1d 'layer.0'" in message
    assert not context.plugin.enqueue(inputs, outputs, [16] * len(inputs), [16] * 2)


def test_wrong_outputs(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    context = make_node(harness, gpu, plan).attach()
    inputs = [tensor_of(o, {"B": 2, "T": 65}) for o in plan.inputs]
    outputs = [tensor_of(o, {"B": 2, "T": 64}) for o in plan.outputs]
    assert not context.plugin.shapes(inputs, outputs)
    assert "output 'y' is (2, 64, 24) float16, the kernels give (2, 65, 24)" in harness.errors()


def test_profiles_that_allow_nothing_at_all(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    plugin = make_node(harness, gpu, plan).plugin
    assert not plugin.configure(*profile(plan, {"B": 1, "T": 0}))
    assert "T is 0" in harness.errors()


def test_a_missing_input(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    plugin = make_node(harness, gpu, plan).plugin
    inputs, outputs = profile(plan)
    assert not plugin.configure(inputs[:-1], outputs)
    assert f"the node has {len(inputs) - 1} inputs" in harness.errors()


CONTRADICTIONS: list[tuple[dict[str, FieldValue], str]] = [
    ({"activation": "none"}, "activation = 'none', the kernels were made for activation = silu"),
    ({"activation": 1}, "the kernels were made for activation = silu"),
    ({"scale": 0.5}, "the kernels were made without that attribute"),
]


@pytest.mark.parametrize(("fields", "said"), CONTRADICTIONS)
def test_attributes_that_contradict_the_kernels(
    fields: dict[str, FieldValue], said: str, harness: Harness, gpu: FakeGpu, plan: Plan
) -> None:
    section = gpu.section(plan)
    assert harness.create("CausalConv1d", {**fields_of(plan, section), **fields}) is None
    assert said in harness.errors()


def test_attributes_as_a_graph_rounds_them(harness: Harness, gpu: FakeGpu) -> None:
    """A float attribute has 32 bits in a graph, and more in the container."""
    plan = plan_of(get("SsdScan"), dt_min=0.001, dt_max=0.1)
    section = gpu.section(plan)
    assert harness.create("SsdScan", fields_of(plan, section)) is not None
    assert harness.create("SsdScan", {**fields_of(plan, section), "dt_min": 0.0011}) is None
    assert "dt_min" in harness.errors()


def test_kernels_of_another_operator(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    assert harness.create("SsdScan", {"kernels": gpu.section(plan)}) is None
    assert "they are kernels of CausalConv1d" in harness.errors()


def test_kernels_as_text(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    """An ONNX string attribute is text, so kernels may come as base64."""
    section = gpu.section(plan)
    text = base64.b64encode(section)
    for given in (text, text + b"\0"):
        plugin = harness.create("CausalConv1d", {"activation": "silu", "kernels": given})
        assert plugin is not None, harness.log()
        assert plugin.serialize()["kernels"] == section
    assert harness.create("CausalConv1d", {"kernels": text[:-3]}) is None
    assert "base64 text is truncated" in harness.errors()
    assert harness.create("CausalConv1d", {"kernels": text[:40] + b"*" + text[41:]}) is None
    assert "character 40 of their text is no base64" in harness.errors()


def test_engines_of_other_libraries(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    stored = make_node(harness, gpu, plan).plugin.serialize()
    assert harness.create("CausalConv1d", stored, Phase.RUNTIME) is not None
    newer = {**stored, "ssm_export_format": 2}
    assert harness.create("CausalConv1d", newer, Phase.RUNTIME) is None
    assert "engine format 2, this one reads format 1: rebuild the engine" in harness.errors()
    unknown = {"kernels": stored["kernels"]}
    assert harness.create("CausalConv1d", unknown, Phase.RUNTIME) is None
    assert "rebuild the engine" in harness.errors()
    bare = {"ssm_export_format": stored["ssm_export_format"]}
    assert harness.create("CausalConv1d", bare, Phase.RUNTIME) is None
    assert "holds no kernels" in harness.errors()


def test_a_clone_is_configured_and_outlives_its_original(
    harness: Harness, gpu: FakeGpu, plan: Plan
) -> None:
    plugin = make_node(harness, gpu, plan).plugin
    assert plugin.configure(*profile(plan))
    clone = plugin.clone()
    stored = plugin.serialize()
    plugin.destroy()
    assert clone.serialize() == stored
    assert clone.workspace(*profile(plan)) == 0
