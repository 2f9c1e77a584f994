"""A hand-made bundle with two states in two forms, and its truth in numpy.

For each token x_t (D wide): z_t = x_t + x_{t-1} / 2 (state past_conv.0, one tap) and
S += z_t ⊗ b (state past_ssm.0); the logits are (S · c) W after the last token. Everything is made
with onnx.helper from standard operators; both graphs point into one weights.data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from ssm_export.bundle import Bundle, Manifest, StateSpec

V, D, N = 11, 4, 3
_TYPES = {
    "fp32": (TensorProto.FLOAT, np.float32, "float32"),
    "fp16": (TensorProto.FLOAT16, np.float16, "float16"),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16, "bfloat16"),
}


@dataclass
class Toy:
    """The bundle and the weights in it, as float64 of what is stored."""

    bundle: Bundle
    weights: dict[str, np.ndarray]

    def states(self, rows: int, seed: int = 3) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        dtype = np.float16 if self.bundle.manifest.precision == "fp16" else np.float32
        conv = rng.integers(-8, 8, (rows, 1, D)) / 8
        return {
            "past_conv.0": conv.astype(dtype),
            "past_ssm.0": rng.normal(size=(rows, D, N)).astype(np.float32),
        }

    def truth(self, ids: np.ndarray, states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One token after the other, in float64."""
        w = self.weights
        before = states["past_conv.0"].astype(np.float64)[:, 0]
        total = states["past_ssm.0"].astype(np.float64)
        for column in ids.T:
            x = w["emb"][column]
            total = total + (x + 0.5 * before)[:, :, None] * w["b"]
            before = x
        logits = (total * w["c"]).sum(-1)[:, None] @ w["head"]
        return {"logits": logits, "present_conv.0": before[:, None], "present_ssm.0": total}


def _graph(form: str, onnx_type: int) -> onnx.GraphProto:
    time = 1 if form == "step" else "time"
    constants = {"zero": [0], "one": [1], "minus_one": [-1], "end": [1 << 40], "last_axis": [2]}
    make = helper.make_node
    nodes = [
        make("Constant", [], [name], name=name, value_ints=value)
        for name, value in constants.items()
    ]
    nodes += [
        make("Gather", ["emb", "input_ids"], ["x"], name="embed"),
        make("Concat", ["past_conv.0", "x"], ["taps"], name="taps", axis=1),
        make("Slice", ["taps", "zero", "minus_one", "one"], ["before"], name="before"),
        make("Slice", ["taps", "minus_one", "end", "one"], ["present_conv.0"], name="newest"),
        make("Mul", ["before", "half"], ["halved"], name="halve"),
        make("Add", ["x", "halved"], ["z"], name="mix"),
        make("Cast", ["z"], ["z32"], name="widen", to=TensorProto.FLOAT),
        make("ReduceSum", ["z32", "one"], ["drive"], name="sum_time", keepdims=0),
        make("Unsqueeze", ["drive", "last_axis"], ["drive3"], name="expand"),
        make("Mul", ["drive3", "b"], ["outer"], name="outer"),
        make("Add", ["past_ssm.0", "outer"], ["present_ssm.0"], name="state"),
        make("Mul", ["present_ssm.0", "c"], ["read"], name="read"),
        make("ReduceSum", ["read", "last_axis"], ["y32"], name="sum_state", keepdims=0),
        make("Unsqueeze", ["y32", "one"], ["y3"], name="as_token"),
        make("Cast", ["y3"], ["y"], name="narrow", to=onnx_type),
        make("MatMul", ["y", "head"], ["logits"], name="lm_head"),
    ]
    value, real = helper.make_tensor_value_info, TensorProto.FLOAT
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch", time]),
        value("past_conv.0", onnx_type, ["batch", 1, D]),
        value("past_ssm.0", real, ["batch", D, N]),
    ]
    outputs = [
        value("logits", onnx_type, ["batch", 1, V]),
        value("present_conv.0", onnx_type, ["batch", 1, D]),
        value("present_ssm.0", real, ["batch", D, N]),
    ]
    return helper.make_graph(nodes, form, inputs, outputs)


def make_toy(folder: Path, precision: str = "fp32", lowerings=("canonical", "native")) -> Toy:
    onnx_type, numpy_type, name = _TYPES[precision]
    rng = np.random.default_rng(0)
    weights = {
        "emb": (rng.integers(-8, 8, (V, D)) / 8).astype(numpy_type),
        "head": rng.normal(size=(D, V)).astype(numpy_type),
        "half": np.array([0.5]).astype(numpy_type),
        "b": rng.normal(size=(D, N)).astype(np.float32),
        "c": rng.normal(size=(D, N)).astype(np.float32),
    }
    (folder / "onnx").mkdir(parents=True)
    tensors, data = [], b""
    for key, array in weights.items():
        kind = TensorProto.FLOAT if key in "bc" else onnx_type
        tensor = TensorProto(name=key, dims=array.shape, data_type=kind)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": "weights.data", "offset": len(data), "length": array.nbytes}
        for field, entry in place.items():
            tensor.external_data.add(key=field, value=str(entry))
        tensors.append(tensor)
        data += array.tobytes()
    (folder / "onnx/weights.data").write_bytes(data)
    graphs = {}
    for form in ("step", "prefill"):
        graph = _graph(form, onnx_type)
        graph.initializer.extend(tensors)
        opsets = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        paths = {
            lowering: f"onnx/{form}.onnx"
            if lowering == "canonical"
            else f"onnx/{form}.{lowering}.onnx"
            for lowering in lowerings
        }
        for path in paths.values():
            (folder / path).write_bytes(model.SerializeToString())
        graphs[form] = paths
    spec = StateSpec
    bundle = Bundle(folder, None)
    bundle.manifest = Manifest(
        source={"path": "toy", "layout": "none", "weights_sha256": ""},
        family="toy",
        sizes={"V": V, "D": D, "N": N},
        precision=precision,
        state_dtype="fp32",
        logits="last",
        ragged=False,
        states=(
            spec("past_conv.0", "present_conv.0", "conv", 0, ("batch", 1, D), name, "B,K-1,D"),
            spec("past_ssm.0", "present_ssm.0", "ssm", 0, ("batch", D, N), "float32", "B,D,N"),
        ),
        graphs={
            form: {lowering: bundle.entry(path) for lowering, path in paths.items()}
            for form, paths in graphs.items()
        },
        lowering={"chosen": "canonical", "why": "standard operators only", "measured": {}},
        weights=bundle.entry("onnx/weights.data"),
    )
    bundle.save()
    return Toy(Bundle.open(folder), {key: a.astype(np.float64) for key, a in weights.items()})


def edit_graph(bundle: Bundle, form: str, edit, lowering: str = "native") -> None:
    """Change a graph of a bundle, and its line in the manifest."""
    entry = bundle.manifest.graphs[form][lowering]
    path = bundle.path / entry.path
    model = onnx.load_model(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())
    bundle.manifest.graphs[form][lowering] = bundle.entry(entry.path)
    bundle.save()
