"""The model repository, against Triton's own definitions, and against a server that is played.

No Triton server can be started here. Its configuration is parsed by the protobuf definitions that
NVIDIA ships, and a small HTTP server does with it what Triton's documents say of the sequence
batcher and implicit state: it knows nothing but ``config.pbtxt`` and the ONNX file. The sample's
client talks to it and has to continue a prompt as the ONNX graph does by itself.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from toy_bundle import Truth, V, make_toy_bundle, make_weights

import ssm_export
from ssm_export import errors
from ssm_export.bundle import Bundle, EngineEntry, StateSpec
from ssm_export.engines._ports import Port
from ssm_export.errors import SsmExportError
from ssm_export.packaging.triton_config import configuration, text_format

CLIENT = Path(__file__).resolve().parents[2] / "samples/triton/client.py"
NUMPY = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64,
         "TYPE_INT32": np.int32, "TYPE_INT8": np.int8}  # fmt: skip


def load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def definitions() -> Any:
    """Triton's messages. The file is loaded by itself: the package around it wants gRPC."""
    spec = importlib.util.find_spec("tritonclient")
    if spec is None or spec.origin is None:
        pytest.skip("tritonclient is not installed")
    return load(Path(spec.origin).parent / "grpc/model_config_pb2.py", "model_config_pb2")


@pytest.fixture(scope="session")
def read(definitions) -> Callable[[Path], Any]:
    from google.protobuf import text_format as protobuf

    def parse(model: Path) -> Any:
        return protobuf.Parse((model / "config.pbtxt").read_text(), definitions.ModelConfig())

    return parse


@pytest.fixture(scope="module")
def repository(toy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "made"
    ssm_export.package(toy, folder, triton=True, max_batch=4, streams=1000)
    return folder


def test_triton_reads_it_and_it_describes_the_graph(repository, read, definitions):
    """Names, types and sizes as onnx itself finds them in the file that the server loads."""
    model = repository / "models/toy"
    config = read(model)
    assert (config.name, config.backend, config.max_batch_size) == ("toy", "onnxruntime", 4)
    batching = config.sequence_batching
    assert batching.WhichOneof("strategy_choice") == "oldest"
    assert batching.oldest.max_candidate_sequences == 1000
    graph = onnx.load(model / "1/model.onnx/model.onnx").graph  # its weights are beside it
    for side, own in (("input", config.input), ("output", config.output)):
        told = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in own}
        told |= {
            getattr(state, f"{side}_name"): (state.data_type, list(state.dims))
            for state in batching.state
        }
        names = {1: "TYPE_FP32", 6: "TYPE_INT32", 7: "TYPE_INT64"}
        found = {}
        for value in getattr(graph, side):
            dims = value.type.tensor_type.shape.dim
            assert dims[0].dim_param == "batch"
            sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims[1:]]
            kind = definitions.DataType.Value(names[value.type.tensor_type.elem_type])
            found[value.name] = (kind, sizes)
        assert told == found
    for state in batching.state:
        (start,) = state.initial_state
        assert start.WhichOneof("state_data") == "zero_data"
        assert start.name
        assert (start.data_type, start.dims) == (state.data_type, state.dims)


def test_without_an_engine_the_other_model_waits_outside(repository, read):
    assert [path.name for path in (repository / "models").iterdir()] == ["toy"]
    config = read(repository / "tensorrt-without-engine/toy-tensorrt")
    assert config.backend == "tensorrt"
    assert list(config.instance_group[0].profile) == ["0", "1"]
    script = (repository / "tensorrt-without-engine/build.sh").read_text()
    assert "input_ids:4x1024" in script
    assert script.count("--profile=") == 2


def with_engine(toy: Bundle, folder: Path, engine: str, form: str) -> Bundle:
    shutil.copytree(toy.path, folder / "toy")
    bundle = Bundle.open(folder / "toy")
    (bundle.path / "engines").mkdir()
    (bundle.path / "engines/one.engine").write_bytes(b"a plan")
    file = bundle.entry("engines/one.engine")
    profile = {"batch": [1, 1, 8], "time": [1, 512, 1024]}
    versions = {"tensorrt": "10.13.3"}
    bundle.manifest.engines = (
        EngineEntry(form, "h100", engine, file, versions, "", "9.0", profile, False, ""),
    )
    return bundle


@pytest.mark.parametrize("form", ["unified", "prefill"])
def test_an_engine_becomes_a_model(toy, tmp_path, read, form):
    bundle = with_engine(toy, tmp_path, "tensorrt", form)
    report = ssm_export.package(bundle, tmp_path / "made", triton=True, max_batch=16)
    assert report.models == {"toy": "onnxruntime", "toy-tensorrt": "tensorrt"}
    model = tmp_path / "made/models/toy-tensorrt"
    assert (model / "1/model.plan").read_bytes() == b"a plan"
    config = read(model)
    assert config.max_batch_size == 8  # the engine's own limit
    profiles = [list(group.profile) for group in config.instance_group]
    assert profiles == ([["0", "1"]] if form == "unified" else [])
    assert any("10.13.3" in note for note in report.notes)


@pytest.mark.parametrize(
    ("engine", "form", "target"),
    [
        ("tensorrt-rtx", "prefill", None),
        ("tensorrt", "step", None),
        ("tensorrt", "prefill", "l4"),
    ],
)
def test_engines_that_triton_cannot_use(toy, tmp_path, engine, form, target):
    bundle = with_engine(toy, tmp_path, engine, form)
    report = ssm_export.package(bundle, tmp_path / "made", triton=True, target=target)
    assert report.models == {"toy": "onnxruntime"}
    assert report.later


def test_bf16_needs_an_engine(toy, tmp_path):
    bundle = with_engine(toy, tmp_path, "tensorrt-rtx", "prefill")
    bundle.manifest.precision = "bf16"
    with pytest.raises(SsmExportError, match="bf16") as raised:
        ssm_export.package(bundle, tmp_path / "made", triton=True)
    assert raised.value.code is errors.BAD_OPTION
    assert not (tmp_path / "made").exists()


def test_int8_states_and_ragged_lengths(definitions):
    """Codes begin at nought, scales at one from a file, a length per row is [1] to a client."""
    from google.protobuf import text_format as protobuf

    states = (
        StateSpec("past_ssm.0", "present_ssm.0", "ssm", 0, ("batch", 4, 8), "int8", "B,D,N"),
        StateSpec(
            "past_s.0", "present_s.0", "ssm_scale", 0, ("batch", 4, 1), "float32", "B,D,N", 1.0
        ),
    )
    inputs = [
        Port("input_ids", "int64", ("batch", "time")),
        Port("sequence_lengths", "int32", ("batch",)),
    ]
    outputs = [Port("logits", "float16", ("batch", "time", 9))]
    config = configuration(
        states, inputs, outputs, name='a "b" \\c', backend="onnxruntime", max_batch=2, streams=3
    )
    parsed = protobuf.Parse("\n".join(text_format(config)), definitions.ModelConfig())
    assert parsed.name == 'a "b" \\c'
    codes, scales = parsed.sequence_batching.state
    assert codes.data_type == definitions.DataType.Value("TYPE_INT8")
    assert codes.initial_state[0].WhichOneof("state_data") == "zero_data"
    assert scales.initial_state[0].data_file == "past_s.0"
    lengths = parsed.input[1]
    assert list(lengths.dims) == [1]
    assert lengths.HasField("reshape")
    assert list(lengths.reshape.shape) == []
    assert list(parsed.output[0].dims) == [-1, 9]


def test_a_start_other_than_zero_is_a_file(toy, tmp_path):
    shutil.copytree(toy.path, tmp_path / "toy")
    bundle = Bundle.open(tmp_path / "toy")
    first, *others = bundle.manifest.states
    from dataclasses import replace

    bundle.manifest.states = (replace(first, initial_value=0.5), *others)
    ssm_export.package(bundle, tmp_path / "made", triton=True)
    data = np.fromfile(tmp_path / f"made/models/toy/initial_state/{first.name_in}", np.float32)
    assert data.size == np.prod(first.shape[1:])
    assert (data == 0.5).all()


def served_by(model: Path, config: Any, definitions: Any) -> type[BaseHTTPRequestHandler]:
    """What Triton's documents say that it does with a sequence model, one row at a time.

    Sequence ids route to states; ``sequence_start`` takes the initial ones; outputs named as states
    come in again as inputs; ``sequence_end`` forgets them. Sizes and types are the configuration's,
    with the batch axis in front.
    """
    session = onnxruntime.InferenceSession(
        model / "1/model.onnx/model.onnx", providers=["CPUExecutionProvider"]
    )
    states = config.sequence_batching.state
    kept: dict[int, dict[str, np.ndarray]] = {}
    lock = threading.Lock()

    def dtype(number: int) -> Any:
        return NUMPY[definitions.DataType.Name(number)]

    class Handler(BaseHTTPRequestHandler):
        sequences = kept

        def do_POST(self) -> None:  # the standard library's name
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            flags = body["parameters"]
            sequence = flags["sequence_id"]
            with lock:
                if flags["sequence_start"]:
                    kept[sequence] = {
                        s.input_name: np.zeros([1, *s.initial_state[0].dims], dtype(s.data_type))
                        for s in states
                    }
                if sequence not in kept:
                    self.send_error(400, "no such sequence")
                    return
                feeds = dict(kept[sequence])
                for tensor, wanted in zip(body["inputs"], config.input, strict=True):
                    assert tensor["name"] == wanted.name
                    array = np.array(tensor["data"], dtype(wanted.data_type))
                    feeds[tensor["name"]] = array.reshape(tensor["shape"])
                names = [output.name for output in session.get_outputs()]
                found = dict(zip(names, session.run(names, feeds), strict=True))
                kept[sequence] = {s.input_name: found[s.output_name] for s in states}
                if flags["sequence_end"]:
                    del kept[sequence]
            (asked,) = body["outputs"]
            array = found[asked["name"]]
            head = json.dumps(
                {"outputs": [{"name": asked["name"], "datatype": "FP32", "shape": array.shape}]}
            ).encode()
            self.send_response(200)
            self.send_header("Inference-Header-Content-Length", str(len(head)))
            self.send_header("Content-Length", str(len(head) + array.nbytes))
            self.end_headers()
            self.wfile.write(head + array.tobytes())

        def log_message(self, *words: object) -> None:
            return None

    return Handler


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_streams_side_by_side_continue_as_the_float64_model_does(
    repository, read, definitions, monkeypatch
):
    """Eight prompts of other lengths, one longer than a piece, all at once."""
    client = load(CLIENT, "triton_client")
    monkeypatch.setattr(client, "CHUNK", 16)
    model = repository / "models/toy"
    handler = served_by(model, read(model), definitions)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, V, size) for size in (1, 2, 5, 15, 16, 17, 33, 40)]
    answers: dict[int, list[int]] = {}
    with serving(handler) as address:

        def run(number: int) -> None:
            answers[number] = client.Stream(address, "toy").generate(prompts[number], 12)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    truth = Truth(make_weights())
    for number, prompt in enumerate(prompts):
        tokens, margins = truth.generate(prompt[None], 12)
        near = np.flatnonzero(margins[0] < 1e-3)
        certain = int(near[0]) if near.size else 12
        assert answers[number][:certain] == tokens[0][:certain].tolist()
        assert certain > 3
    assert handler.sequences == {}


def test_the_client_as_a_program(repository, read, definitions, monkeypatch, capsys, tmp_path):
    """The README's command, against the played server; ids of the toy are bytes below V."""
    client = load(CLIENT, "triton_client")
    model = repository / "models/toy"
    with serving(served_by(model, read(model), definitions)) as address:
        words = ["client.py", "--model", "toy", "--server", address, "--max-tokens", "4"]
        monkeypatch.setattr(sys, "argv", [*words, "\x01\x02", "\x03"])
        client.main()
    lines = capsys.readouterr().out
    assert lines.startswith("\x01\x02")


def test_a_bundle_with_lengths(tmp_path, read):
    """Every input of its graph is a client's or the server's."""
    bundle = make_toy_bundle(tmp_path / "ragged", ragged=True)
    ssm_export.package(bundle, tmp_path / "made", triton=True)
    model = tmp_path / "made/models/ragged"
    config = read(model)
    session = onnxruntime.InferenceSession(
        model / "1/model.onnx/model.onnx", providers=["CPUExecutionProvider"]
    )
    told = {tensor.name for tensor in config.input}
    told |= {state.input_name for state in config.sequence_batching.state}
    assert told == {value.name for value in session.get_inputs()}
    assert [tensor.name for tensor in config.input] == ["input_ids", "sequence_lengths"]
