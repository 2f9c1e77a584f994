"""A whole model as TensorRT would run it: the lowered graph, its scans through the library.

ONNX's evaluator computes the standard operators; a plugin node goes from its attributes through
the C++ library to the interpreted kernels. The truth is what export recorded from the float64
PyTorch model.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fake_gpu import FakeGpu
from kernel_calls import ORIN, make_plan, to_numpy, to_torch
from node_runs import Node
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_evaluator import GatherElements
from plugin_harness import Harness

from ssm_export.bundle import Bundle
from ssm_export.lowering import PLUGIN_DOMAIN, lower_for_plugin
from ssm_export.ops import Call, OpSpec
from ssm_export_plugins.plan import Plan

PIECES = (1, 7, 1, 33, 1)
"""Tokens of each call: single tokens between pieces of a prompt, as a session makes them."""


def plugin_operator(
    op_type: str, plans: dict[bytes, Plan], harness: Harness, gpu: FakeGpu
) -> type[OpRun]:
    """An operator of the evaluator that is a layer of an engine: built once, then run."""

    def run(self: Any, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        plan = plans[base64.b64decode(attributes["kernels"])]
        if not hasattr(self, "node"):
            plugin = harness.create(op_type, attributes, node=self.onnx_node.name)
            assert plugin is not None, harness.log()
            node = Node(harness, gpu, plan, plugin)
            node.build()
            self.node = node.attach()
        names = [operand.name for operand in plan.inputs]
        tensors = {name: to_torch(v) for name, v in zip(names, inputs, strict=True)}
        sizes: dict[str, int] = {}
        for operand, value in zip(plan.inputs, inputs, strict=True):
            sizes.update(
                {s: n for s, n in zip(operand.shape, value.shape, strict=True) if s in ("B", "T")}
            )
        made = self.node.run(tensors, sizes)
        assert made is not None, harness.log()
        return tuple(to_numpy(made[o.name]).astype(np.dtype(o.type)) for o in plan.outputs)

    return type(op_type, (OpRun,), {"op_domain": PLUGIN_DOMAIN, "_run": run})


@pytest.fixture
def bundle(family: str, bundle_of: Callable[..., Path]) -> Bundle:
    return Bundle.open(bundle_of(family, ragged=True))


@pytest.fixture
def engine(bundle: Bundle, harness: Harness, gpu: FakeGpu, tmp_path: Path) -> ReferenceEvaluator:
    """The lowered graph of a bundle with its scans as layers of the library."""
    plans: dict[bytes, Plan] = {}

    def kernels(spec: OpSpec, call: Call) -> bytes:
        plan = make_plan(spec, call, ORIN)
        section = gpu.section(plan)
        plans[section] = plan
        return section

    canonical = ir.load(bundle.graph_path("prefill", "canonical"))
    lowered = lower_for_plugin(canonical, kernels).model
    (tmp_path / "weights.data").symlink_to(bundle.path / "onnx" / "weights.data")
    onnx.save(ir.to_proto(lowered), tmp_path / "unified.onnx")
    model = onnx.load(tmp_path / "unified.onnx", load_external_data=False)
    onnx.load_external_data_for_model(model, str(bundle.path / "onnx"))
    kinds = {node.op_type for node in model.graph.node if node.domain == PLUGIN_DOMAIN}
    assert kinds
    operators = [plugin_operator(kind, plans, harness, gpu) for kind in kinds]
    return ReferenceEvaluator(model, new_ops=[*operators, GatherElements])


def test_a_session_on_the_engine_is_the_model(
    bundle: Bundle, engine: ReferenceEvaluator, harness: Harness, gpu: FakeGpu
) -> None:
    entry = next(e for e in bundle.manifest.parity if e.kind == "prefill")
    with np.load(bundle.file(entry.file)) as case:
        recorded = dict(case)
    ids = recorded["input_ids"]
    batch, time = ids.shape
    states = {
        state.name_in: np.zeros([batch, *state.shape[1:]], np.float32)
        for state in bundle.manifest.states
    }
    names = [output.name for output in engine.proto_.graph.output]
    cuts = np.minimum(np.cumsum((0, *PIECES, time)), time)
    pieces = [(begin, end) for begin, end in itertools.pairwise(cuts) if begin < end]
    for begin, end in pieces:
        feeds = {
            **states,
            "input_ids": ids[:, begin:end],
            "sequence_lengths": np.full(batch, end - begin, np.int32),
        }
        found = dict(zip(names, engine.run(None, feeds), strict=True))
        states = {state.name_in: found[state.name_out] for state in bundle.manifest.states}
        expected = recorded["logits"][:, end - 1 : end]
        np.testing.assert_allclose(found["logits"], expected, rtol=2e-4, atol=2e-4)
    for state in bundle.manifest.states:
        np.testing.assert_allclose(
            states[state.name_in], recorded[state.name_in], rtol=2e-4, atol=2e-5
        )
    assert harness.errors() == ""
    layers = sum(node.domain == PLUGIN_DOMAIN for node in engine.proto_.graph.node)
    assert len(gpu.launches) >= layers * len(pieces)
