"""Nodes of opset 27, which carry no kernels: those of a file, chosen by attributes and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu
from kernel_calls import ORIN, make_plan, to_torch
from node_runs import Node, arrays
from one_call import PRECISION, assert_within, rounded
from plugin_harness import FieldValue, Harness, Plugin, Tensor

from ssm_export.ops import OpSpec
from ssm_export_plugins import kernels, standard
from ssm_export_plugins.plan import Plan

NAMES = [name for name in standard.names() if kernels.has_kernels(name)]
SIZES = {
    "LinearAttention": {"B": 2, "T": 9, "H": 2, "G": 1, "K": 8, "V": 6},
    "CausalConvWithState": {"B": 2, "T": 9, "D": 12, "K": 4},
}
HEADS = {"q_num_heads": 2, "kv_num_heads": 2}
CASES = [
    ("LinearAttention", {**HEADS, "update_rule": "gated_delta"}, ()),
    ("LinearAttention", {**HEADS, "update_rule": "gated", "scale": 1.0}, ("beta",)),
    ("LinearAttention", {**HEADS, "update_rule": "gated"}, ("past_state", "beta")),
    ("LinearAttention", {**HEADS, "update_rule": "delta"}, ("decay",)),
    ("LinearAttention", {**HEADS, "update_rule": "linear"}, ("past_state", "decay", "beta")),
    ("CausalConvWithState", {"activation": "silu"}, ()),
    ("CausalConvWithState", {}, ("bias",)),
    ("CausalConvWithState", {"activation": "none"}, ("bias", "past_state")),
]
AS_PARSED: Mapping[str, dict[str, FieldValue]] = {
    "LinearAttention": {"update_rule": "gated_delta", "scale": 0.0, "chunk_size": 0},
    "CausalConvWithState": {"ndim": 1, "activation": "none"},
}
"""The fields that TensorRT's parser passes for attributes that a node does not have."""


def inputs_of(spec: OpSpec, omit: tuple[str, ...], kind: str = "float32", **sizes: int) -> dict:
    inputs = spec.make_inputs(
        np.random.default_rng(3), {**SIZES[spec.name], **sizes}, set(omit), False
    )
    return rounded(spec, inputs, {"T": kind, "S": kind})


def plan_of(spec: OpSpec, feeds: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> Plan:
    shapes = {name: array.shape for name, array in feeds.items()}
    types = {name: str(array.dtype) for name, array in feeds.items()}
    return make_plan(spec, standard.call(spec.name, shapes, types, attributes), ORIN)


def layout_of(spec: OpSpec, feeds: Mapping[str, np.ndarray]) -> tuple[str | None, ...]:
    """The node's inputs, with gaps but without those after the last."""
    names = [port.name if port.name in feeds else None for port in spec.inputs]
    while names[-1] is None:
        names.pop()
    return tuple(names)


def created(harness: Harness, name: str, attributes: Mapping[str, Any]) -> Plugin | None:
    return harness.create(name, {**AS_PARSED[name], **attributes}, namespace="", node="mixer")


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kernels.ssmk"
    monkeypatch.setenv("SSM_EXPORT_KERNELS", str(path))
    return path


@pytest.mark.parametrize("gaps", [True, False], ids=["gaps", "dense"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "attributes", "omit"), CASES)
def test_kernels_of_a_file(
    name: str, attributes: dict, omit: tuple[str, ...], kind: str, gaps: bool,
    pack: Path, harness: Harness, gpu: FakeGpu,
) -> None:  # fmt: skip
    """Among the kernels of every other case, those of this node are found and compute it."""
    if name not in NAMES:
        pytest.skip(f"there are no kernels for {name}")
    sections = []
    wanted = None
    for other, given, left_out in CASES:
        for each in ("float32", "bfloat16"):
            spec = standard.get(other)
            plan = plan_of(spec, inputs_of(spec, left_out, each, T=2), given)
            sections.append(gpu.section(plan))
            if (other, given, left_out, each) == (name, attributes, omit, kind):
                wanted = plan, sections[-1]
    assert wanted is not None
    pack.write_bytes(b"".join(sections))
    plan, section = wanted
    spec = standard.get(name)
    feeds = inputs_of(spec, omit, kind)
    plugin = created(harness, name, attributes)
    assert plugin is not None, harness.log()
    layout = layout_of(spec, feeds) if gaps else tuple(feeds)
    node = Node(harness, gpu, plan, plugin, layout)
    node.build({"B": 2, "T": 16})
    assert plugin.serialize()["kernels"] == section
    tensors = {port: to_torch(array) for port, array in feeds.items()}
    made = node.attach().run(tensors, {"B": 2, "T": 9})
    assert made is not None, harness.log()
    for port, value in spec.reference(feeds, {**spec.attributes, **attributes}).items():
        assert_within(arrays(made)[port], value, spec.tolerances[PRECISION[kind]], port)


def test_no_file(pack: Path, harness: Harness, gpu: FakeGpu) -> None:
    """What was asked for, and how to make it."""
    attributes = {**HEADS, "update_rule": "gated", "scale": 0.125, "chunk_size": 64}
    assert created(harness, "LinearAttention", attributes) is None
    message = harness.errors()
    for part in ("LinearAttention 'mixer'", f"there is no file {pack}", "q_num_heads = 2",
                 "update_rule = 'gated'", "scale = 0.125", "chunk_size = 64",
                 "ssm-export kernels GRAPH.onnx --target T -o kernels.ssmk",
                 "SSM_EXPORT_KERNELS"):  # fmt: skip
        assert part in message


def test_a_file_without_such_kernels(pack: Path, harness: Harness, gpu: FakeGpu) -> None:
    spec = standard.get("CausalConvWithState")
    pack.write_bytes(gpu.section(plan_of(spec, inputs_of(spec, ()), {"activation": "silu"})))
    assert created(harness, "CausalConvWithState", {"activation": "none"}) is None
    message = harness.errors()
    assert "the kernels were made for activation = silu" in message
    assert created(harness, "CausalConvWithState", {"activation": "silu", "ndim": 2}) is None
    assert "ndim = 2" in harness.errors()
    pack.write_bytes(b"")
    assert created(harness, "CausalConvWithState", {"activation": "silu"}) is None
    assert "there are no kernels in it" in harness.errors()


def test_a_file_for_other_sizes(pack: Path, harness: Harness, gpu: FakeGpu) -> None:
    """The reasons of every candidate are said."""
    spec = standard.get("CausalConvWithState")
    feeds = [inputs_of(spec, (), D=width) for width in (12, 16)]
    pack.write_bytes(b"".join(gpu.section(plan_of(spec, each, {})) for each in feeds))
    plugin = created(harness, "CausalConvWithState", {})
    assert plugin is not None
    wide = {name: array.shape for name, array in inputs_of(spec, (), D=20).items()}
    inputs = [Tensor("float32", shape) for shape in wide.values()]
    outputs = [Tensor("float32", wide["input"]), Tensor("float32", wide["past_state"])]
    assert not plugin.configure(inputs, outputs)
    message = harness.errors()
    assert "(B, 12, T)" in message and "(B, 16, T)" in message


def test_one_token_beside_any_length(pack: Path, harness: Harness, gpu: FakeGpu) -> None:
    """Kernels for a single token do not take a node whose length is not known."""
    spec = standard.get("CausalConvWithState")
    step = gpu.section(plan_of(spec, inputs_of(spec, (), T=1), {}))
    general_plan = plan_of(spec, inputs_of(spec, (), T=2), {})
    general = gpu.section(general_plan)
    pack.write_bytes(step + general)
    plugin = created(harness, "CausalConvWithState", {})
    assert plugin is not None
    node = Node(harness, gpu, general_plan, plugin)
    node.build({"B": 2, "T": 16})
    assert plugin.serialize()["kernels"] == general
    alone = created(harness, "CausalConvWithState", {})
    assert alone is not None
    fixed = Node(harness, gpu, general_plan, alone)
    inputs, outputs = fixed.described({"B": 2, "T": 1})
    assert alone.configure(inputs, outputs)
    assert alone.serialize()["kernels"] == step
