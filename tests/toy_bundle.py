"""A hand-built bundle: a small linear recurrence language model, its float64 truth, and faults.

Nothing of the exporter is used. The graphs are made with onnx.helper from standard operators, the
recorded vectors by a token-by-token loop in numpy. A layer is

    u = x W_in;  g = silu(conv(u));  h' = a h + (1 − a) g ⊗ b;  x' = x + (h' · c) W_out

with the states past_conv.<i> (B,K−1,D) and past_ssm.<i> (B,D,N).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ssm_export.bundle import Bundle, FileEntry, Manifest, ParityEntry, StateSpec
from ssm_export.engines.runner import RunnerInfo

V, M, D, N, K, L = 40, 24, 16, 4, 4, 3
ROWS, TOKENS = 3, 70
LENGTHS = np.array([70, 41, 2])
GREEDY = 256
DRIFT = 4096
NEVER = 1 << 40


@dataclass(frozen=True)
class Fault:
    """A mistake planted into a graph: its kind, the layer, and the form (both when empty)."""

    kind: str
    layer: int = 1
    form: str = ""

    def at(self, kind: str, layer: int, form: str) -> bool:
        return (kind, layer) == (self.kind, self.layer) and self.form in ("", form)


SOUND = Fault("none", -1)


def make_weights(seed: int = 7) -> dict[str, np.ndarray]:
    """fp32 weights by name."""
    rng = np.random.default_rng(seed)
    weights = {"embedding": rng.normal(size=(V, M)), "head": rng.normal(size=(M, V)) * 0.4}
    for i in range(L):
        weights[f"layers.{i}.in_proj"] = rng.normal(size=(M, D)) / np.sqrt(M)
        weights[f"layers.{i}.conv"] = rng.normal(size=(K, D)) / np.sqrt(K)
        weights[f"layers.{i}.a"] = 1 - 10.0 ** rng.uniform(-3.3, -0.4, size=(D, N))
        weights[f"layers.{i}.b"] = rng.normal(size=(D, N))
        weights[f"layers.{i}.c"] = rng.normal(size=(D, N))
        weights[f"layers.{i}.out_proj"] = rng.normal(size=(D, M)) / np.sqrt(D)
    return {name: value.astype(np.float32) for name, value in weights.items()}


class Truth:
    """The model in numpy float64, one token after the other."""

    name = "numpy"

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}

    def token(self, ids: np.ndarray, states: dict[str, np.ndarray]) -> np.ndarray:
        """ids (B,) → logits (B,V); advances ``states`` in place."""
        w = self.weights
        x = w["embedding"][ids]
        for i in range(L):
            u = x @ w[f"layers.{i}.in_proj"]
            taps = np.concatenate([states[f"past_conv.{i}"], u[:, None]], axis=1)
            states[f"past_conv.{i}"] = taps[:, 1:]
            g = (taps * w[f"layers.{i}.conv"]).sum(axis=1)
            g = g / (1 + np.exp(-g))
            a = w[f"layers.{i}.a"]
            drive = (1 - a) * w[f"layers.{i}.b"] * g[:, :, None]
            states[f"past_ssm.{i}"] = a * states[f"past_ssm.{i}"] + drive
            x = (
                x
                + (states[f"past_ssm.{i}"] * w[f"layers.{i}.c"]).sum(-1) @ w[f"layers.{i}.out_proj"]
            )
        return x @ w["head"]

    def start(self, rows: int) -> dict[str, np.ndarray]:
        states = {f"past_conv.{i}": np.zeros((rows, K - 1, D)) for i in range(L)}
        return states | {f"past_ssm.{i}": np.zeros((rows, D, N)) for i in range(L)}

    def forward(self, input_ids: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        states = self.start(len(input_ids))
        logits = [self.token(column, states) for column in input_ids.T]
        return np.stack(logits, axis=1), states

    def generate(self, input_ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        states = self.start(len(input_ids))
        for column in input_ids.T:
            logits = self.token(column, states)
        tokens, margins = [], []
        for _ in range(count):
            ordered = np.sort(logits, axis=1)
            margins.append(ordered[:, -1] - ordered[:, -2])
            tokens.append(logits.argmax(axis=1))
            logits = self.token(tokens[-1], states)
        return np.stack(tokens, axis=1), np.stack(margins, axis=1)


class GraphBuilder:
    """One graph, node by node."""

    def __init__(self, form: str, ragged: bool, every: bool, fault: Fault) -> None:
        self.form, self.ragged, self.every, self.fault = form, ragged, every, fault
        self.nodes: list[onnx.NodeProto] = []
        self.inline: dict[str, np.ndarray] = {}
        self.external: set[str] = set()
        self.wrong: dict[str, np.ndarray] = {}

    def __call__(self, op: str, *inputs: str | np.ndarray, name: str = "", **attributes) -> str:
        names = [x if isinstance(x, str) else self.constant(np.asarray(x)) for x in inputs]
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [name], name=name, **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.inline)}"
        self.inline[name] = value
        return name

    def weight(self, name: str) -> str:
        self.external.add(name)
        return name

    def layer(self, i: int, x: str) -> str:
        w = lambda part: self.weight(f"layers.{i}.{part}")  # noqa: E731
        at = lambda kind: self.fault.at(kind, i, self.form)  # noqa: E731
        u = self("MatMul", x, w("in_proj"))
        if at("weight in_proj"):
            u = self("Mul", u, np.float32(1.02))
        if at("nan"):
            u = self("Div", self("Mul", u, np.float32(0)), self("Mul", u, np.float32(0)))
        past = f"past_conv.{i}"
        taps = self("Concat", past, u, axis=1)
        g = ""
        for k in range(K):
            end = np.array([k - K + 1 if k < K - 1 else NEVER])
            part = self("Slice", taps, np.array([k]), end, np.array([1]))
            tap = self("Gather", w("conv"), np.array(k), axis=0)
            g = self("Add", g, self("Mul", part, tap)) if g else self("Mul", part, tap)
        self.conv_state(i, taps)
        g = self("Mul", g, self("Sigmoid", g))
        y = self.scan(i, g)
        if at("weight out_proj"):
            y = self("Mul", y, np.float32(1.02))
        return self("Add", x, self("MatMul", y, w("out_proj")))

    def conv_state(self, i: int, taps: str) -> None:
        if not self.ragged:
            self(
                "Slice",
                taps,
                np.array([1 - K]),
                np.array([NEVER]),
                np.array([1]),
                name=f"present_conv.{i}",
            )
            return
        base = self(
            "Reshape", self("Cast", "sequence_lengths", to=TensorProto.INT64), np.array([-1, 1, 1])
        )
        index = self("Add", base, np.arange(K - 1).reshape(1, -1, 1))
        index = self("Add", index, np.zeros((1, 1, D), np.int64))
        self("GatherElements", taps, index, axis=1, name=f"present_conv.{i}")

    def scan(self, i: int, g: str) -> str:
        """g (B,T,D) → y (B,T,D), with the state of layer i."""
        w = lambda part: self.weight(f"layers.{i}.{part}")  # noqa: E731
        at = lambda kind: self.fault.at(kind, i, self.form)  # noqa: E731
        past = f"past_ssm.{i}"
        if at("forgets"):
            past = self("Mul", past, np.float32(0))
        drive = self("Mul", self("Sub", np.float32(1), w("a")), w("b"))
        if at("chunk boundary"):
            tokens = self("Gather", self("Shape", g), np.array(1))
            factor = self(
                "Where", self("Greater", tokens, np.array(64)), np.float32(0.99), np.float32(1)
            )
            g = self("Mul", g, factor)
        inputs = self("Mul", self("Unsqueeze", g, np.array([3])), drive)  # (B,T,D,N)
        by_time = self("Transpose", inputs, perm=[1, 0, 2, 3])
        valid = self.valid(i)
        body = self.body(i)
        state, every = f"present_ssm.{i}", f"states.{i}"
        self.nodes.append(
            helper.make_node(
                "Scan",
                [past, by_time, valid],
                [state, every],
                name=f"scan.{i}",
                num_scan_inputs=2,
                body=body,
            )
        )
        y = self("ReduceSum", self("Mul", every, w("c")), np.array([-1]), keepdims=0)
        return self("Transpose", y, perm=[1, 0, 2])

    def valid(self, i: int) -> str:
        """(T,B,1,1): 1 where a row has a token."""
        ids = self("Transpose", "input_ids", perm=[1, 0])
        ones = self("Add", self("Mul", ids, np.array(0)), np.array(1))
        at = self("CumSum", ones, np.array(0))
        if self.ragged and not self.fault.at("padding seen", i, self.form):
            lengths = self("Cast", "sequence_lengths", to=TensorProto.INT64)
            flag = self("LessOrEqual", at, lengths)
        else:
            flag = self("Greater", at, np.array(0))
        return self("Unsqueeze", flag, np.array([2, 3]))

    def body(self, i: int) -> onnx.GraphProto:
        value = lambda name, shape, kind: helper.make_tensor_value_info(name, kind, shape)  # noqa: E731
        shape, real = ["batch", D, N], TensorProto.FLOAT
        make = helper.make_node
        nodes = [make("Mul", [f"layers.{i}.a", "h"], ["kept"]), make("Add", ["kept", "x"], ["sum"])]
        last, extra = "sum", []
        if self.fault.at("leak", i, self.form):
            extra.append(numpy_helper.from_array(np.array([0]), "batch_axis"))
            extra.append(numpy_helper.from_array(np.float32(1e-3), "little"))
            nodes += [
                make("ReduceMean", ["sum", "batch_axis"], ["mean"], keepdims=1),
                make("Mul", ["mean", "little"], ["leak"]),
                make("Add", ["sum", "leak"], ["leaky"]),
            ]
            last = "leaky"
        if self.fault.at("saturates", i, self.form):
            limit = seen_in_short_prompts(i)
            extra.append(numpy_helper.from_array(-limit, "low"))
            extra.append(numpy_helper.from_array(limit, "high"))
            nodes.append(make("Min", [last, "high"], ["below"]))
            nodes.append(make("Max", ["below", "low"], ["clipped"]))
            last = "clipped"
        nodes += [
            make("Where", ["valid", last, "h"], ["next"]),
            make("Identity", ["next"], ["out"]),
        ]
        return helper.make_graph(
            nodes,
            f"scan_body.{i}",
            [
                value("h", shape, real),
                value("x", shape, real),
                value("valid", ["batch", 1, 1], TensorProto.BOOL),
            ],
            [value("next", shape, real), value("out", shape, real)],
            initializer=extra,
        )

    def build(self) -> onnx.GraphProto:
        x = self("Gather", self.weight("embedding"), "input_ids", axis=0)
        for i in range(L):
            x = self.layer(i, x)
        if self.form == "prefill" and not self.every:
            if self.ragged:
                last = self(
                    "Max",
                    self("Sub", "sequence_lengths", np.array(1, np.int32)),
                    np.array(0, np.int32),
                )
                index = self(
                    "Reshape", self("Cast", last, to=TensorProto.INT64), np.array([-1, 1, 1])
                )
                x = self(
                    "GatherElements", x, self("Add", index, np.zeros((1, 1, M), np.int64)), axis=1
                )
            else:
                x = self("Slice", x, np.array([-1]), np.array([NEVER]), np.array([1]))
        if self.fault.at("swapped tokens", self.fault.layer, self.form):
            order = np.roll(np.arange(V), 1)
            self("Gather", self("MatMul", x, self.weight("head")), order, axis=2, name="logits")
        elif self.fault.at("head", self.fault.layer, self.form):
            self("MatMul", self("Mul", x, np.float32(1.02)), self.weight("head"), name="logits")
        else:
            self("MatMul", x, self.weight("head"), name="logits")
        time = 1 if self.form == "step" else "time"
        value, real = helper.make_tensor_value_info, TensorProto.FLOAT
        inputs = [value("input_ids", TensorProto.INT64, ["batch", time])]
        if self.ragged:
            inputs.append(value("sequence_lengths", TensorProto.INT32, ["batch"]))
        outputs = [value("logits", real, ["batch", time if self.every else 1, V])]
        for i in range(L):
            for kind, shape in (("conv", (K - 1, D)), ("ssm", (D, N))):
                inputs.append(value(f"past_{kind}.{i}", real, ["batch", *shape]))
                outputs.append(value(f"present_{kind}.{i}", real, ["batch", *shape]))
        inline = [numpy_helper.from_array(np.asarray(v), k) for k, v in self.inline.items()]
        return helper.make_graph(self.nodes, self.form, inputs, outputs, initializer=inline)


def _save_graph(builder: GraphBuilder, path: Path, weights: dict[str, np.ndarray]) -> None:
    graph = builder.build()
    builder.external |= {name for name in weights if name.endswith(".a")}
    offset = 0
    for name, value in weights.items():
        if name in builder.external:
            tensor = TensorProto(name=name, dims=value.shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "weights.data", "offset": offset, "length": value.nbytes}
            for key, entry in place.items():
                tensor.external_data.add(key=key, value=str(entry))
            graph.initializer.append(tensor)
        offset += value.nbytes
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def prompts(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "prefill": rng.integers(0, V, (ROWS, TOKENS)),
        "ragged": rng.integers(0, V, (ROWS, TOKENS)),
        "drift": rng.integers(0, V, (1, DRIFT)),
        "generate": rng.integers(0, V, (1, 9)),
    }


def seen_in_short_prompts(layer: int) -> np.ndarray:
    """(D,N): a little more than the largest state of a layer during the recorded prompt."""
    truth = Truth(make_weights())
    states = truth.start(ROWS)
    largest = np.zeros((D, N))
    for column in prompts(np.random.default_rng(1))["prefill"].T:
        truth.token(column, states)
        largest = np.maximum(largest, np.abs(states[f"past_ssm.{layer}"]).max(axis=0))
    return (largest * 1.01).astype(np.float32)


def record(truth: Truth, folder: Path) -> None:
    """The recorded vectors of a bundle."""
    folder.mkdir()
    ids = prompts(np.random.default_rng(1))
    for kind in ("prefill", "drift"):
        logits, states = truth.forward(ids[kind])
        logits = logits[:, -1:] if kind == "drift" else logits
        _write(folder, kind, input_ids=ids[kind], logits=logits, **states)
    logits = np.zeros((ROWS, TOKENS, V))
    rows = []
    for row, length in enumerate(LENGTHS):
        one, states = truth.forward(ids["ragged"][row : row + 1, :length])
        logits[row, :length] = one[0]
        rows.append(states)
    states = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    _write(
        folder, "ragged", input_ids=ids["ragged"], sequence_lengths=LENGTHS, logits=logits, **states
    )
    tokens, margins = truth.generate(ids["generate"], GREEDY)
    _write(folder, "generate", input_ids=ids["generate"], tokens=tokens, margin=margins)


def _write(folder: Path, name: str, **arrays: np.ndarray) -> None:
    stored = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    np.savez(folder / f"{name}.npz", **stored)


def make_toy_bundle(
    folder: Path, *, fault: Fault = SOUND, ragged: bool = False, every: bool = False
) -> Bundle:
    """Write a bundle into the new folder ``folder`` and open it."""
    weights = make_weights()
    (folder / "onnx").mkdir(parents=True)
    data = b"".join(value.tobytes() for value in weights.values())
    (folder / "onnx/weights.data").write_bytes(data)
    for form in ("step", "prefill"):
        builder = GraphBuilder(form, ragged, every, fault)
        _save_graph(builder, folder / f"onnx/{form}.onnx", weights)
    record(Truth(weights), folder / "parity")
    config = {"model_type": "toy", "vocab_size": V, "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    unknown = FileEntry("onnx/weights.data", 0, "")
    states = tuple(
        StateSpec(
            f"past_{kind}.{i}", f"present_{kind}.{i}", kind, i, ("batch", *shape), "float32", layout
        )
        for i in range(L)
        for kind, shape, layout in (("conv", (K - 1, D), "B,K-1,D"), ("ssm", (D, N), "B,D,N"))
    )
    manifest = Manifest(
        source={"path": "toy", "layout": "none", "weights_sha256": ""},
        family="toy",
        sizes={"V": V, "M": M, "D": D, "N": N, "K": K, "L": L},
        precision="fp32",
        state_dtype="fp32",
        logits="all" if every else "last",
        ragged=ragged,
        states=states,
        graphs={},
        lowering={"chosen": "canonical", "why": "the graphs have standard operators only"},
        weights=unknown,
    )
    bundle = Bundle(folder, manifest)
    manifest.weights = bundle.entry("onnx/weights.data")
    manifest.graphs = {
        f: {"canonical": bundle.entry(f"onnx/{f}.onnx")} for f in ("step", "prefill")
    }
    manifest.files = (bundle.entry("config.json"),)
    sizes = {"prefill": (ROWS, TOKENS), "drift": (1, DRIFT), "generate": (1, 9)}
    sizes |= {"ragged": (ROWS, TOKENS)} if ragged else {}
    manifest.parity = tuple(
        ParityEntry(kind, kind, bundle.entry(f"parity/{kind}.npz"), *size)
        for kind, size in sizes.items()
    )
    bundle.save()
    return Bundle.open(folder)


class PlainRunner:
    """ONNX Runtime on a toy bundle, without the engines package."""

    def __init__(self, bundle: Bundle, max_chunk: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.info = RunnerInfo(
            "plain", {"onnxruntime": onnxruntime.__version__}, "cpu", "canonical"
        )
        self.max_chunk = max_chunk
        self._sessions = {
            form: onnxruntime.InferenceSession(
                bundle.graph_path(form), options, providers=["CPUExecutionProvider"]
            )
            for form in ("step", "prefill")
        }

    def run(self, form: str, feeds) -> dict[str, np.ndarray]:
        assert self.max_chunk is None or feeds["input_ids"].shape[1] <= self.max_chunk
        session = self._sessions[form]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        self._sessions.clear()
