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

from ssm_export.bundle import Bundle
from ssm_export.lowering import PLUGIN_DOMAIN, Lowered, lower_for_plugin
from ssm_export.ops import Call, OpSpec, all_ops


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


class GatherElements(OpRun):
    """The evaluator's own goes through ``numpy.choose``, which takes 64 arrays at most."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis),)


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
    assert [node.op_type for node in nodes] == [node.op_type for node in calls]
    assert sum(made.counts.values()) == len(nodes) > 0
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_namespace"] == b"ssm_export"
        assert attributes["plugin_version"] == b"1"
        assert all(node.input), "an input that is left out would reach the parser"
        ports = base64.b64decode(attributes["kernels"]).decode().split()
        assert len(ports) == len(node.input)
        assert set(all_ops()[node.op_type].attributes) <= set(attributes)


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
    operators = [as_reference_operator(spec) for spec in all_ops().values()]
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
