"""Memory that a plugin keeps between launches: when it is had, cleared and given back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fake_gpu import FakeGpu
from kernel_calls import to_numpy, to_torch
from node_runs import Node, feeds_of, make_node, plan_of
from one_call import assert_within
from plugin_harness import Harness

from ssm_export.ops import fused_ops
from ssm_export_plugins.container import read, write
from ssm_export_plugins.kernels.conv_ssd_scan import MAX_TICKETS

SPEC = fused_ops()["ConvSsdScan"]
STATES = {"present_conv": "past_conv", "present_ssm": "past_ssm"}
TOKEN = {"B": 2, "T": 1}


@pytest.fixture
def node(harness: Harness, gpu: FakeGpu) -> Node:
    made = make_node(harness, gpu, plan_of(SPEC, omit=["sequence_lengths"]))
    made.build()
    return made


def test_many_tokens_in_two_contexts(harness: Harness, gpu: FakeGpu, node: Node) -> None:
    """States in place, two contexts in turn: what one has counted is nothing to the other."""
    steps = 4
    contexts = [node.attach(), node.attach()]
    feeds, runs = [], []
    for seed in range(2):
        given, tensors = feeds_of(SPEC, "float32", {"B": 2, "T": steps}, ["sequence_lengths"], seed)
        feeds.append(given)
        runs.append(tensors)
    for t in range(steps):
        for context, given, tensors in zip(contexts, feeds, runs, strict=True):
            for name in ("xBC", "dt"):
                tensors[name] = to_torch(given[name][:, t : t + 1])
            made = context.run(tensors, TOKEN, in_place=STATES)
            assert made is not None, harness.log()
            y = SPEC.reference(given, SPEC.attributes)["y"][:, t : t + 1]
            assert_within(to_numpy(made["y"]), y, SPEC.tolerances["fp32"])
    assert {one.entry for one in gpu.launches} == {"conv_ssd_scan_step"}


def test_each_context_has_its_own_and_gives_it_back(gpu: FakeGpu, node: Node) -> None:
    assert gpu.allocations() == 0
    gpu.history()
    contexts = [node.attach(), node.attach()]
    calls = gpu.history()
    assert gpu.allocations() == calls["cuMemAlloc"] == calls["cuMemsetD8Async"] == 2
    assert calls["cuStreamCreate"] == calls["cuStreamDestroy"] == calls["cuStreamSynchronize"] == 2
    for left, context in zip((1, 0), contexts, strict=True):
        context.plugin.destroy()
        assert gpu.allocations() == left


def test_it_is_given_back_where_it_came_from(gpu: FakeGpu, node: Node) -> None:
    context = node.attach()
    gpu.context(2)
    gpu.history()
    context.plugin.destroy()
    assert gpu.allocations() == 0
    calls = gpu.history()
    assert calls["cuCtxPushCurrent"] == calls["cuCtxPopCurrent"]
    assert calls["cuCtxPushCurrent"] >= 1


@pytest.mark.parametrize(
    ("function", "said"), [("cuMemAlloc", "cannot be had"), ("cuMemsetD8Async", "be cleared")]
)
def test_memory_that_cannot_be_had(
    function: str, said: str, harness: Harness, gpu: FakeGpu, node: Node
) -> None:
    gpu.fail(function, 2)
    assert node.plugin.attach() is None
    message = harness.errors()
    for part in ("ConvSsdScan 'layer.0' loading [", f"{4 * MAX_TICKETS} bytes of device memory",
                 said, "CUDA_ERROR_OUT_OF_MEMORY (2)"):  # fmt: skip
        assert part in message
    assert gpu.allocations() == 0


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({}, "there is no persistent of this name"),
        ({"tickets": 0}, "'0' is no integer from 1"),
        ({"tickets": 1 << 40}, "is no integer from 1"),
    ],
)
def test_a_wrong_header(sizes: dict[str, int], said: str, harness: Harness, gpu: FakeGpu) -> None:
    (section,) = read(gpu.section(plan_of(SPEC)))
    wrong = write(dataclasses.replace(section, persistents=sizes))
    assert harness.create(SPEC.name, {"kernels": wrong}) is None
    assert said in harness.errors()


def test_memory_of_the_driver_is_not_clear_by_itself(gpu: FakeGpu, node: Node) -> None:
    """The fake driver gives memory as it was: without the clearing these tests would fail."""
    seen: list[torch.Tensor] = []
    find = gpu._tensor

    def watched(address: int, kind: str) -> torch.Tensor:
        found = find(address, kind)
        if kind == "int32":
            seen.append(found.clone())
        return found

    gpu._tensor = watched  # type: ignore[method-assign]
    try:
        context = node.attach()
        _, tensors = feeds_of(SPEC, "float32", TOKEN, ["sequence_lengths"])
        assert context.run(tensors, TOKEN) is not None
    finally:
        gpu._tensor = find  # type: ignore[method-assign]
    (tickets,) = seen
    assert tickets.numel() == MAX_TICKETS
    assert not tickets.any()
