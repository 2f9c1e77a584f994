"""From a node's fields to its numbers: what the library launches, against the float64 reference."""

from __future__ import annotations

import pytest
from fake_gpu import FakeGpu
from node_runs import arrays, feeds_of, make_node, plan_of, same_buffer
from one_call import PRECISION, assert_within
from plugin_harness import Harness, Phase

from ssm_export.ops import OpSpec, all_ops, fused_ops
from ssm_export_plugins import kernels

OPS = [spec for spec in (all_ops() | fused_ops()).values() if kernels.has_kernels(spec.name)]
by_name = pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)


def check(spec: OpSpec, feeds: dict, made: dict, kind: str) -> None:
    for name, value in spec.reference(feeds, spec.attributes).items():
        assert_within(made[name], value, spec.tolerances[PRECISION[kind]], name)


@by_name
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_numbers_of_prompts_and_tokens(
    spec: OpSpec, kind: str, harness: Harness, gpu: FakeGpu
) -> None:
    """One context runs a prompt, then one token, then another prompt, as one engine does."""
    node = make_node(harness, gpu, plan_of(spec, kind))
    node.build()
    context = node.attach()
    for batch, time in ((2, 65), (1, 1), (3, 2)):
        feeds, tensors = feeds_of(spec, kind, {"B": batch, "T": time}, seed=time)
        made = context.run(tensors, {"B": batch, "T": time})
        assert made is not None, harness.log()
        check(spec, feeds, arrays(made), kind)
    assert harness.errors() == ""


@by_name
def test_state_in_place(spec: OpSpec, harness: Harness, gpu: FakeGpu) -> None:
    node = make_node(harness, gpu, plan_of(spec))
    node.build()
    context = node.attach()
    for time in (1, 33):
        feeds, tensors = feeds_of(spec, "float32", {"B": 2, "T": time})
        made = context.run(tensors, {"B": 2, "T": time}, in_place=same_buffer(spec))
        assert made is not None, harness.log()
        check(spec, feeds, arrays(made), "float32")


@by_name
def test_optional_inputs_left_out(spec: OpSpec, harness: Harness, gpu: FakeGpu) -> None:
    omit = [port.name for port in spec.inputs if port.optional]
    node = make_node(harness, gpu, plan_of(spec, omit=omit))
    node.build()
    feeds, tensors = feeds_of(spec, "float32", {"B": 1, "T": 5}, omit)
    made = node.attach().run(tensors, {"B": 1, "T": 5})
    assert made is not None, harness.log()
    check(spec, feeds, arrays(made), "float32")


@by_name
def test_an_engine_runs_without_the_graph(spec: OpSpec, harness: Harness, gpu: FakeGpu) -> None:
    """What is serialized is enough: fields of an engine, no attributes, no kernels file."""
    built = make_node(harness, gpu, plan_of(spec))
    built.build()
    stored = built.plugin.serialize()
    built.plugin.destroy()
    restored = harness.create(spec.name, stored, Phase.RUNTIME)
    assert restored is not None, harness.log()
    node = make_node(harness, gpu, built.plan)
    node.plugin, node.workspace_bytes = restored, built.workspace_bytes
    feeds, tensors = feeds_of(spec, "float32", {"B": 2, "T": 9})
    made = node.attach().run(tensors, {"B": 2, "T": 9})
    assert made is not None, harness.log()
    check(spec, feeds, arrays(made), "float32")
    assert restored.serialize() == stored


@by_name
def test_enqueue_only_launches(spec: OpSpec, harness: Harness, gpu: FakeGpu) -> None:
    """No allocation, no waiting, no loading: what a graph capture forbids."""
    node = make_node(harness, gpu, plan_of(spec))
    node.build()
    context = node.attach()
    for time in (1, 65):
        _, tensors = feeds_of(spec, "float32", {"B": 2, "T": time})
        gpu.history()
        gpu.launches.clear()
        assert context.run(tensors, {"B": 2, "T": time}, stream=0x5EED0) is not None
        expected = context.plan.case({"B": 2, "T": time}).launches
        assert gpu.history() == {"cuLaunchKernel": len(expected)}
        assert [one.entry for one in gpu.launches] == [one.kernel.name for one in expected]
        assert {one.stream for one in gpu.launches} == {0x5EED0}
        sizes = {"B": 2, "T": time}
        assert [one.grid for one in gpu.launches] == [
            tuple(axis.value(sizes) for axis in one.grid) for one in expected
        ]


def test_contexts_do_not_share_shapes(harness: Harness, gpu: FakeGpu) -> None:
    """Two contexts of one engine keep their own shapes between their calls."""
    spec = all_ops()["CausalConv1d"]
    node = make_node(harness, gpu, plan_of(spec))
    node.build()
    contexts = [node.attach(), node.attach()]
    calls = [{"B": 1, "T": 1}, {"B": 2, "T": 40}]
    for context, sizes in zip(contexts, calls, strict=True):
        assert context.plugin.shapes(*context.described(sizes))
    for context, sizes in zip(contexts, calls, strict=True):
        feeds, tensors = feeds_of(spec, "float32", sizes)
        made = context.run(tensors, sizes, announce=False)
        assert made is not None, harness.log()
        check(spec, feeds, arrays(made), "float32")


def test_shapes_that_nobody_announced(harness: Harness, gpu: FakeGpu) -> None:
    """A switch of profiles changes the shapes of an enqueue: what it is given decides."""
    spec = all_ops()["CausalConv1d"]
    node = make_node(harness, gpu, plan_of(spec))
    node.build()
    context = node.attach()
    for sizes, announce in (({"B": 2, "T": 40}, True), ({"B": 1, "T": 1}, False)):
        feeds, tensors = feeds_of(spec, "float32", sizes)
        made = context.run(tensors, sizes, announce=announce)
        assert made is not None, harness.log()
        check(spec, feeds, arrays(made), "float32")
