"""The library in a real TensorRT: TensorRT-RTX's plugin registry and ONNX parser, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_gpu import FakeGpu
from node_runs import in_profile, plan_of
from onnx import TensorProto, helper
from plugin_harness import Harness

from ssm_export.ops import all_ops, fused_ops, get
from ssm_export_plugins.library import NAME

CONV = get("CausalConv1d")
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def runtime() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module")
def registry(runtime: Any, built: Path) -> Any:
    found = runtime.get_plugin_registry()
    found.load_library(str(built / NAME))
    return found


def collection(runtime: Any, fields: Mapping[str, Any]) -> Any:
    made = []
    for name, value in fields.items():
        if isinstance(value, (str, bytes)):
            data = np.frombuffer(value if isinstance(value, bytes) else value.encode(), np.int8)
            made.append(runtime.PluginField(name, data, runtime.PluginFieldType.CHAR))
        else:
            kind = "INT32" if isinstance(value, int) else "FLOAT32"
            data = np.array([value], np.int32 if kind == "INT32" else np.float32)
            made.append(runtime.PluginField(name, data, getattr(runtime.PluginFieldType, kind)))
    return runtime.PluginFieldCollection(made)


def test_creators(registry: Any) -> None:
    found = {(one.name, one.plugin_namespace): one for one in registry.all_creators_recursive}
    for name in all_ops() | fused_ops():
        assert found[name, "ssm_export"].plugin_version == "1"
        assert "kernels" in [field.name for field in found[name, "ssm_export"].field_names]
    assert {("LinearAttention", ""), ("CausalConvWithState", "")} <= set(found)


def test_plugins_from_fields(runtime: Any, registry: Any, harness: Harness, gpu: FakeGpu) -> None:
    """Created by the registry, serialized by the harness, created again as an engine does."""
    creator = registry.get_creator("CausalConv1d", "1", "ssm_export")
    plan = plan_of(CONV)
    section = gpu.section(plan)
    fields = {"activation": "silu", "kernels": section + b"\0"}
    plugin = creator.create_plugin("layer.0", collection(runtime, fields),
                                   runtime.TensorRTPhase.BUILD)  # fmt: skip
    build = plugin.get_capability_interface(runtime.PluginCapabilityType.BUILD)
    assert build.num_outputs == len(plan.outputs)
    twin = harness.create("CausalConv1d", fields)
    assert twin is not None
    stored = twin.serialize()
    assert stored["kernels"] == section
    again = creator.create_plugin("layer.0", collection(runtime, stored),
                                  runtime.TensorRTPhase.RUNTIME)  # fmt: skip
    assert again is not None
    newer = collection(runtime, {**stored, "ssm_export_format": 7})
    refused = creator.create_plugin("layer.0", newer, runtime.TensorRTPhase.RUNTIME)
    assert refused is None
    least, most = {"B": 1, "T": 1}, {"B": 4, "T": 64}
    shapes = twin.output_shapes([in_profile(o, least, most) for o in plan.inputs])
    assert shapes == "0.0 0.1 24, 0.0 3 24"


PARSE = """
import json, sys
import tensorrt_rtx as runtime

class Logger(runtime.ILogger):
    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, message):
        self.lines.append(message)

logger = Logger()
builder = runtime.Builder(logger)
library, graph = sys.argv[1:]
builder.get_plugin_registry().load_library(library)
network = builder.create_network(0)
parser = runtime.OnnxParser(network, logger)
parsed = parser.parse_from_file(graph)
print(json.dumps({"parsed": parsed, "log": logger.lines}))
"""


def parse(tmp_path: Path, built: Path, model: onnx.ModelProto) -> str:
    """What is logged while a graph is parsed in a child; its node must get no plugin.

    TensorRT-RTX has no plugin layers: it ends the process when a creator makes one.
    """
    path = tmp_path / "graph.onnx"
    onnx.save(model, path)
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(built / NAME), str(path)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "SSM_EXPORT_KERNELS": str(tmp_path / "none.ssmk")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["parsed"] is False
    # A library for TensorRT 10 has no use for this runtime's logger and writes to standard error.
    return "\n".join([*answer["log"], done.stderr])


def graph(
    node: onnx.NodeProto, inputs: Mapping[str, tuple[Any, ...]], opset: int, domain: str = ""
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
              for name, shape in inputs.items()]  # fmt: skip
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
               for name in node.output]  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    made = helper.make_graph([node], "g", values, results)
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def test_a_stamped_node_reaches_its_creator(
    runtime: Any, built: Path, tmp_path: Path, gpu: FakeGpu
) -> None:
    """The attributes arrive as fields; kernels of another operator are refused, so it lives."""
    kernels = gpu.section(plan_of(CONV))
    attributes = {"dt_softplus": 1, "dt_min": 0.25, "dt_max": float("inf"), "chunk_size": 64}
    node = helper.make_node(
        "SsdScan", ["x"], ["y", "present"], name="layer.3/scan", domain="ssm_export.plugin",
        plugin_namespace="ssm_export", plugin_version="1", kernels=kernels, **attributes,
    )  # fmt: skip
    log = parse(tmp_path, built, graph(node, {"x": ("B", 4)}, 20, "ssm_export.plugin"))
    assert (
        "ssm_export cannot create SsdScan 'layer.3/scan' with dt_softplus = 1, dt_min = 0.25, "
        f"dt_max = inf, chunk_size = 64, kernels of {len(kernels) + 1} bytes"
    ) in log
    assert "they are kernels of CausalConv1d" in log


def test_opset_27_names_reach_their_creators(runtime: Any, built: Path, tmp_path: Path) -> None:
    linear = helper.make_node(
        "LinearAttention", ["q", "k", "v", "", "d"], ["y", "present"], name="mixer",
        q_num_heads=4, kv_num_heads=2, update_rule="gated", scale=0.5,
    )  # fmt: skip
    inputs = {"q": ("B", "T", 64), "k": ("B", "T", 32), "v": ("B", "T", 16), "d": ("B", "T", 2)}
    log = parse(tmp_path, built, graph(linear, inputs, 27))
    assert (
        "ssm_export cannot create LinearAttention 'mixer' with q_num_heads = 4, kv_num_heads = 2, "
        "update_rule = 'gated', scale = 0.5, chunk_size = 0"
    ) in log
    assert "ssm-export kernels GRAPH.onnx --target T" in log
    conv = helper.make_node(
        "CausalConvWithState", ["x", "w", "", "s"], ["y", "present"], name="conv", activation="silu"
    )
    shapes = {"x": ("B", 6, "T"), "w": (6, 1, 4), "s": ("B", 6, 3)}
    log = parse(tmp_path, built, graph(conv, shapes, 27))
    assert "cannot create CausalConvWithState 'conv' with ndim = 1, activation = 'silu'" in log
