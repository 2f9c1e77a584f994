"""Inspect says what is there, and never opens a weights file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from toy_bundle import D, K, L, N, PlainRunner, make_toy_bundle

from ssm_export import errors
from ssm_export.bundle import Bundle, EngineEntry
from ssm_export.documents.tables import render
from ssm_export.errors import SsmExportError
from ssm_export.inspection import inspect
from ssm_export.verification import verify


@pytest.fixture
def bundle(tmp_path):
    return make_toy_bundle(tmp_path / "toy")


def test_a_bundle(bundle):
    verify(bundle, runner=PlainRunner(bundle), checks=["logits", "drift"])
    size = (bundle.path / "onnx/weights.data").stat().st_size
    (bundle.path / "onnx/weights.data").unlink()
    report = inspect(bundle.path)
    assert (report.kind, report.facts["family"]) == ("bundle", "toy")
    assert report.facts["weights"]["bytes"] == size
    assert [s.name_in for s in report.states[:2]] == ["past_conv.0", "past_ssm.0"]
    assert [s.bytes_per_row for s in report.states[:2]] == [4 * (K - 1) * D, 4 * D * N]
    assert report.facts["state_bytes_per_row"] == 4 * L * ((K - 1) * D + D * N)
    assert {(g.form, g.lowering) for g in report.graphs} == {
        ("step", "canonical"),
        ("prefill", "canonical"),
    }
    assert report.parity["last_verify"]["ok"] is True
    assert {v["kind"] for v in report.parity["vectors"]} == {"prefill", "drift", "generate"}
    assert json.loads(json.dumps(report.as_json()))["kind"] == "bundle"
    text = render(report.table(), 160)
    assert "past_conv.* → present_conv.*" in text
    assert "(batch, 3, 16)" in text
    assert "Last verify" in text


def test_a_graph(bundle):
    size = (bundle.path / "onnx/weights.data").stat().st_size
    (bundle.path / "onnx/weights.data").unlink()
    (graph,) = inspect(bundle.path / "onnx/prefill.onnx").graphs
    assert graph.opsets == {"ai.onnx": 20}
    assert graph.external == {"weights.data": size}
    assert graph.nodes["ai.onnx::Scan"] == L
    assert graph.nodes["ai.onnx::Where"] == L  # inside the bodies of the scans
    assert graph.inputs["input_ids"] == "int64 (batch, time)"
    assert graph.outputs["present_ssm.2"] == "float (batch, 16, 4)"
    assert "present_ssm.2" in render(inspect(bundle.path / "onnx/prefill.onnx").table(), 160)


def test_functions_are_counted(tmp_path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    body = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Neg", ["r"], ["y"])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ssm_export", 1)]
    function = helper.make_function("ssm_export", "Scan1", ["x"], ["y"], body, opsets[:1])
    calls = [
        helper.make_node("Scan1", ["a"], ["b"], domain="ssm_export"),
        helper.make_node("Scan1", ["b"], ["c"], domain="ssm_export"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["batch"]) for name in "ac"]
    graph = helper.make_graph(calls, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, functions=[function], opset_imports=opsets)
    onnx.save(model, tmp_path / "m.onnx")
    (facts,) = inspect(tmp_path / "m.onnx").graphs
    assert facts.nodes == {"ssm_export::Scan1": 2}
    assert facts.functions == {"ssm_export::Scan1": 2}
    assert facts.opsets == {"ai.onnx": 20, "ssm_export": 1}


def test_types_of_weights(tmp_path):
    """Two 4-bit numbers share a byte, and an odd one has a byte of its own."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    tensors = [
        helper.make_tensor("a", kinds.INT4, [3, 5], [1] * 15),
        helper.make_tensor("b", kinds.INT8, [8, 4], [1] * 32),
        helper.make_tensor("c", kinds.INT8, [8, 4], [1] * 32),
        helper.make_tensor("d", kinds.FLOAT16, [7], [1.0] * 7),
        helper.make_tensor("e", kinds.FLOAT8E4M3FN, [6], [1.0] * 6),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["batch"]) for name in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    report = inspect(tmp_path / "m.onnx")
    found = {kind: (t.count, t.bytes) for kind, t in report.graphs[0].types.items()}
    assert found == {"int8": (2, 64), "float16": (1, 14), "int4": (1, 8), "float8e4m3fn": (1, 6)}
    assert list(found) == ["int8", "float16", "int4", "float8e4m3fn"]
    assert "float8e4m3fn" in render(report.table(), 160)


def test_a_quantized_bundle_says_so(bundle):
    assert inspect(bundle.path).facts["quantization"] == {}
    assert "quantization" not in render(inspect(bundle.path).table(), 160)
    bundle.manifest.quantization = {
        "recipe": "mine",
        "target": "rtx-ada",
        "weights": {
            "a": {"site": "a", "scheme": "int4", "block": 64},
            "b": {"site": "b", "scheme": "int4", "block": 64},
            "c": {"site": "c", "scheme": "int8", "block": 0},
        },
        "activations": {
            "a": {"scheme": "float", "rotate": 32},
            "c": {"scheme": "int8", "rotate": 0},
        },
        "lost_bits": 0.0123,
        "kl_bits": 0.01,
        "top1": 0.98,
        "evaluated_on": "held.txt: 100 tokens",
    }
    bundle.save()
    facts = inspect(bundle.path).facts["quantization"]
    counts = {name: found["count"] for name, found in facts["weights"].items()}
    assert counts == {"int4/64": 2, "int8": 1}
    assert (facts["inputs"], facts["rotated"], facts["lost_bits"]) == ({"int8": 1}, 1, 0.0123)
    text = render(inspect(bundle.path).table(), 160)
    for said in ("recipe mine", "for rtx-ada", "fp32 states", "+0.0123", "int4/64"):
        assert said in text


def test_an_engine_says_what_the_manifest_knows_of_it(bundle, tmp_path):
    path = bundle.path / "engines/rtx/step.engine"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"engine")
    entry = bundle.entry("engines/rtx/step.engine")
    note = "built, not run: no GPU"
    bundle.manifest.engines = (
        EngineEntry(
            "step", "rtx", "tensorrt-rtx", entry, {"v": "1"}, "linux", "8.9", {}, False, note
        ),
    )
    bundle.save()
    report = inspect(path)
    assert (report.kind, report.bytes, report.engines[0].note) == ("engine", 6, note)
    assert note in render(report.table(), 200)
    alone = tmp_path / "alone.plan"
    alone.write_bytes(b"engine")
    assert "no bundle" in inspect(alone).facts["note"]
    assert inspect(Bundle.open(bundle.path).path).engines == report.engines


def test_a_checkpoint(tmp_path):
    save = pytest.importorskip("safetensors.numpy").save_file
    config = {"model_type": "mamba", "hidden_size": 8, "architectures": ["X"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}
    save(tensors, tmp_path / "model.safetensors")
    report = inspect(tmp_path)
    assert (report.kind, report.facts["family"]) == ("checkpoint", "mamba")
    assert report.tensors["parameters"] == 22
    assert report.tensors["parameters_by_type"] == {"F32": 15, "F16": 7}
    assert "hidden_size 8" in render(report.table(), 200)
    raw = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(raw[:20])
    with pytest.raises(SsmExportError) as caught:
        inspect(tmp_path)
    assert caught.value.code is errors.CORRUPT_WEIGHTS


def test_what_is_none_of_these(tmp_path):
    for path, code in (
        (tmp_path / "nothing", errors.NO_SUCH_PATH),
        (tmp_path, errors.NOT_A_BUNDLE),
        (tmp_path / "bad.onnx", errors.GRAPH_INVALID),
        (tmp_path / "note.txt", errors.NOT_A_BUNDLE),
    ):
        if path.suffix:
            path.write_bytes(b"\xff\xff not a graph")
        with pytest.raises(SsmExportError) as caught:
            inspect(path)
        assert caught.value.code is code
