"""The library on a GPU: compiled kernels, real streams, graph capture, against the reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from kernel_calls import call_of
from node_runs import Node, arrays, feeds_of, fields_of, same_buffer
from one_call import PRECISION, assert_within
from plugin_harness import Harness

from ssm_export.ops import OpSpec, all_ops, fused_ops
from ssm_export_plugins import aot, kernels
from ssm_export_plugins.plan import Chip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]
OPS = [spec for spec in (all_ops() | fused_ops()).values() if kernels.has_kernels(spec.name)]
by_name = pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)


class Gpu:
    """The GPU that torch uses, which gives the addresses of its tensors."""

    def address(self, tensor: torch.Tensor) -> int:
        return tensor.data_ptr()


def this_chip() -> Chip:
    facts = torch.cuda.get_device_properties(0)
    shared = facts.shared_memory_per_block_optin
    return Chip((facts.major, facts.minor), shared, facts.multi_processor_count)


def built(harness: Harness, spec: OpSpec, kind: str) -> Node:
    """A node with compiled kernels, built for its profile."""
    torch.zeros(1, device="cuda")  # makes the context current, as TensorRT has done by then
    inputs = spec.make_inputs(np.random.default_rng(0), spec.sizes, (), True)
    call = call_of(spec, inputs, {"T": kind, "S": "float32"})
    (compiled,) = aot.compile_calls([(spec, call)], this_chip())
    plugin = harness.create(spec.name, fields_of(compiled.plan, compiled.blob))
    assert plugin is not None, harness.log()
    node = Node(harness, Gpu(), compiled.plan, plugin)
    node.build()
    return node


def check(spec: OpSpec, feeds: Mapping[str, np.ndarray], made: Mapping, kind: str) -> None:
    torch.cuda.synchronize()
    for name, value in spec.reference(feeds, spec.attributes).items():
        assert_within(arrays(made)[name], value, spec.tolerances[PRECISION[kind]], name)


@by_name
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_numbers_on_a_stream(spec: OpSpec, kind: str, harness: Harness) -> None:
    context = built(harness, spec, kind).attach()
    stream = torch.cuda.Stream()
    for batch, time in ((2, 65), (1, 1), (3, 128), (2, 1)):
        feeds, tensors = feeds_of(spec, kind, {"B": batch, "T": time}, seed=time)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            made = context.run(tensors, {"B": batch, "T": time}, stream=stream.cuda_stream)
        assert made is not None, harness.log()
        check(spec, feeds, made, kind)


@by_name
def test_state_in_place(spec: OpSpec, harness: Harness) -> None:
    context = built(harness, spec, "float32").attach()
    for time in (1, 100):
        feeds, tensors = feeds_of(spec, "float32", {"B": 2, "T": time})
        made = context.run(tensors, {"B": 2, "T": time}, in_place=same_buffer(spec))
        assert made is not None, harness.log()
        check(spec, feeds, made, "float32")


@by_name
@pytest.mark.parametrize("time", [1, 100])
def test_graph_capture(spec: OpSpec, time: int, harness: Harness) -> None:
    """A captured enqueue, replayed on other numbers in the same buffers."""
    context = built(harness, spec, "float32").attach()
    sizes = {"B": 2, "T": time}
    _, tensors = feeds_of(spec, "float32", sizes)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        made = context.run(tensors, sizes, stream=stream)
    assert made is not None, harness.log()
    for seed in (1, 2):
        feeds, others = feeds_of(spec, "float32", sizes, seed=seed)
        for name, tensor in others.items():
            tensors[name].copy_(tensor)
        for tensor in made.values():
            tensor.fill_(float("nan"))
        graph.replay()
        check(spec, feeds, made, "float32")


@by_name
def test_two_contexts_at_once(spec: OpSpec, harness: Harness) -> None:
    node = built(harness, spec, "float32")
    calls = [{"B": 2, "T": 100}, {"B": 4, "T": 1}]
    runs = [(node.attach(), torch.cuda.Stream(), sizes) for sizes in calls]
    data = [feeds_of(spec, "float32", sizes, seed=i) for i, sizes in enumerate(calls)]
    torch.cuda.synchronize()
    results = []
    for _ in range(8):
        for (context, stream, sizes), (_, tensors) in zip(runs, data, strict=True):
            with torch.cuda.stream(stream):
                results.append(context.run(tensors, sizes, stream=stream.cuda_stream))
    assert all(result is not None for result in results), harness.log()
    for index, result in enumerate(results):
        assert result is not None
        check(spec, data[index % 2][0], result, "float32")


def test_kernels_for_another_gpu(harness: Harness) -> None:
    """The driver's own refusal of a cubin, or ours before it, names both architectures."""
    spec = OPS[0]
    ours = this_chip().capability
    other = (8, 7) if ours != (8, 7) else (9, 0)
    inputs = spec.make_inputs(np.random.default_rng(0), spec.sizes, (), True)
    call = call_of(spec, inputs, {"T": "float32", "S": "float32"})
    (compiled,) = aot.compile_calls([(spec, call)], Chip(other, 100_000, 16))
    plugin = harness.create(spec.name, fields_of(compiled.plan, compiled.blob))
    assert plugin is not None, harness.log()
    torch.zeros(1, device="cuda")
    assert plugin.attach() is None
    message = harness.errors()
    assert f"{other[0]}.{other[1]}" in message and f"{ours[0]}.{ours[1]}" in message
