"""CUDA graphs of the TensorRT runner on a stand-in of the driver and of TensorRT.

The stand-in has memory, a stream that can be captured, and an engine that adds what it is fed to
its state, so a graph that is replayed on the wrong buffers gives wrong numbers. It says nothing of
a GPU: there this has not been run.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ssm_export.bundle import EngineEntry, FileEntry, StateSpec
from ssm_export.engines import _cuda, _trt_runner
from ssm_export.engines._trt_runner import TensorRtRunner

V, N = 5, 4
STATE = StateSpec("past_ssm.0", "present_ssm.0", "ssm", 0, ("batch", N), "float32", "B,N")
ENTRY = EngineEntry(
    form="step",
    target="toy",
    engine="tensorrt",
    file=FileEntry("step.engine", 0, ""),
    versions={},
    platform="",
    compute_capability="",
    profile={},
    ran=False,
    note="",
)


class Driver:
    """The calls of libcuda that the runner makes; device memory is memory of this process."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[str] = []
        self.memory: dict[int, ctypes.Array] = {}
        self.recording: list | None = None
        self.graphs: dict[int, list] = {}
        self.broken = False

    def __getattr__(self, name: str):
        def call(*arguments):
            self.calls.append(name)
            handler = getattr(type(self), f"on_{name}", None)
            return handler(self, *arguments) if handler else 0

        return call

    def on_cuStreamCreate(self, stream, flags):  # noqa: N802  # the driver's names
        stream._obj.value = 77
        return 0

    def on_cuMemAlloc_v2(self, pointer, size):  # noqa: N802
        block = ctypes.create_string_buffer(size.value)
        self.memory[ctypes.addressof(block)] = block
        pointer._obj.value = ctypes.addressof(block)
        return 0

    def on_cuMemFree_v2(self, pointer):  # noqa: N802
        block = self.memory.pop(pointer.value)
        ctypes.memset(block, 0xFF, len(block))  # whoever still reads it reads NaN
        return 0

    def on_cuMemcpyHtoDAsync_v2(self, to, source, size, stream):  # noqa: N802
        assert self.recording is None, "a copy was captured"
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def on_cuMemcpyDtoHAsync_v2(self, to, source, size, stream):  # noqa: N802
        assert self.recording is None, "a copy was captured"
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def on_cuStreamSynchronize(self, stream):  # noqa: N802
        assert self.recording is None, "the stream was waited for while it was captured"
        return 0

    def on_cuStreamBeginCapture_v2(self, stream, mode):  # noqa: N802
        assert (stream.value, mode, self.recording) == (77, 1, None)
        self.recording = []
        return 0

    def on_cuStreamEndCapture(self, stream, graph):  # noqa: N802
        recorded, self.recording = self.recording, None
        if self.fails == "capture":
            return 901
        graph._obj.value = 500 + len(self.graphs)
        self.graphs[graph._obj.value] = recorded
        return 0

    def on_cuGraphInstantiateWithFlags(self, executable, graph, flags):  # noqa: N802
        if self.fails == "instantiate":
            return 1
        executable._obj.value = graph.value + 1000
        self.graphs[executable._obj.value] = self.graphs[graph.value]
        return 0

    def on_cuGraphDestroy(self, graph):  # noqa: N802
        self.graphs[graph.value] = []
        return 0

    def on_cuGraphLaunch(self, executable, stream):  # noqa: N802
        for work in self.graphs[executable.value]:
            work()
        return 0

    def on_cuGraphExecDestroy(self, executable):  # noqa: N802
        del self.graphs[executable.value]
        return 0


class Context:
    """present = past + ids; logits = present[:, :1] in every position."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.shapes, self.addresses, self.fresh = driver, {}, {}, True

    def set_input_shape(self, name, shape):
        self.shapes[name], self.fresh = tuple(shape), True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        return (self.shapes["input_ids"][0], 1, V)

    def execute_async_v3(self, stream):
        assert stream == 77
        at, (rows, tokens) = dict(self.addresses), self.shapes["input_ids"]

        def array(name, kind, shape):
            count = int(np.prod(shape)) * np.dtype(kind).itemsize
            memory = (ctypes.c_char * count).from_address(at[name])
            return np.frombuffer(memory, kind).reshape(shape)

        def work():
            ids = array("input_ids", np.int64, (rows, tokens))
            present = array("past_ssm.0", np.float32, (rows, N)) + ids.sum(1, keepdims=True)
            array("present_ssm.0", np.float32, (rows, N))[...] = present
            array("logits", np.float32, (rows, 1, V))[...] = present[:, None, :1]

        if self.driver.recording is None:
            self.fresh = False
            work()
        else:
            assert not self.fresh, "the first run after a shape was set was captured"
            self.driver.recording.append(work)
        return True


class Engine:
    def __init__(self, driver, shapes):
        self.driver, self.shapes = driver, shapes
        self.num_io_tensors = len(shapes)

    def create_execution_context(self):
        return Context(self.driver)

    def get_tensor_name(self, at):
        return list(self.shapes)[at]

    def get_tensor_mode(self, name):
        return "output" if name in ("logits", "present_ssm.0") else "input"

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name="INT64" if name == "input_ids" else "FLOAT")

    def get_tensor_shape(self, name):
        return self.shapes[name]


@pytest.fixture
def runner_on(monkeypatch):
    """``runner_on(driver, …)``: a runner of both forms on the stand-in."""

    def make(driver: Driver, unified: bool = False, **options) -> TensorRtRunner:
        def engine(data):
            ids = (-1, -1) if unified or data != b"step" else (-1, 1)
            state = {"past_ssm.0": (-1, N), "present_ssm.0": (-1, N)}
            made = Engine(driver, {"input_ids": ids, **state, "logits": (-1, 1, V)})
            return made

        trt = SimpleNamespace(
            Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=engine),
            TensorIOMode=SimpleNamespace(INPUT="input"),
            __version__="0",
        )
        forms = ["unified"] if unified else ["step", "prefill"]
        entries = {form: replace(ENTRY, form=form) for form in forms}
        gpu = SimpleNamespace(compute_capability=(9, 0), name="stand-in")
        monkeypatch.setattr(_cuda, "load_driver", lambda: driver)
        monkeypatch.setattr(_trt_runner, "find_gpus", lambda: [gpu])
        monkeypatch.setattr(_trt_runner, "choose_engines", lambda *_: entries)
        monkeypatch.setattr(_trt_runner.importlib, "import_module", lambda name: trt)
        if unified:
            monkeypatch.setattr(
                Context, "set_optimization_profile_async", lambda *_: True, raising=False
            )
        bundle = SimpleNamespace(
            manifest=SimpleNamespace(states=(STATE,)),
            file=lambda entry: SimpleNamespace(read_bytes=lambda: b"step"),
        )
        return TensorRtRunner(bundle, "tensorrt", **options)

    return make


def decoded(runner: TensorRtRunner, rows: int, tokens: int, begin: float = 0.0) -> np.ndarray:
    """Decode and hold every logit to a running sum; gives the state."""
    total = np.full((rows, 1), begin)
    for at in range(tokens):
        ids = (at + np.arange(rows)[:, None]).astype(np.int64)
        total = total + ids
        logits = runner.advance("step", ids)
        np.testing.assert_array_equal(logits, np.broadcast_to(total[:, None], (rows, 1, V)))
    state = runner.read_state()["past_ssm.0"]
    np.testing.assert_array_equal(state, np.broadcast_to(total, (rows, N)))
    return state


def zeros(rows: int) -> dict[str, np.ndarray]:
    return {"past_ssm.0": np.zeros((rows, N), np.float32)}


@pytest.mark.parametrize(("unified", "graphs"), [(False, 2), (True, 1)])
def test_decoding_is_captured_once_for_each_direction_and_then_launched(runner_on, unified, graphs):
    driver = Driver()
    runner = runner_on(driver, unified)
    runner.load_state(zeros(1))
    decoded(runner, 1, 20)
    assert driver.calls.count("cuStreamBeginCapture_v2") == graphs
    # A direction runs once before it is captured; a graph is launched when it is there.
    assert driver.calls.count("cuGraphLaunch") == 20 - graphs
    assert runner.cuda_graph is True
    # A new state in the same buffers needs no new graph.
    runner.load_state({"past_ssm.0": np.full((1, N), 7, np.float32)})
    decoded(runner, 1, 9, begin=7)
    assert driver.calls.count("cuStreamBeginCapture_v2") == graphs
    runner.close()
    assert driver.calls.count("cuGraphExecDestroy") == graphs
    assert driver.memory == {}


@pytest.mark.parametrize("unified", [False, True])
def test_another_batch_or_a_prefill_between_is_captured_anew_or_not_at_all(runner_on, unified):
    driver = Driver()
    runner = runner_on(driver, unified)
    for rows in (1, 3, 2, 1):
        runner.load_state(zeros(rows))
        decoded(runner, rows, 7)
    before = driver.calls.count("cuStreamBeginCapture_v2")
    runner.load_state(zeros(1))
    for tokens in (5, 1, 2):
        begun = float(runner.read_state()["past_ssm.0"][0, 0])
        runner.advance("prefill", np.full((1, tokens), 2, dtype=np.int64))
        decoded(runner, 1, 6, begin=begun + 2 * tokens)
    assert driver.calls.count("cuStreamBeginCapture_v2") - before <= (1 if unified else 2)


def test_graphs_can_be_switched_off_and_on(runner_on):
    driver = Driver()
    runner = runner_on(driver, cuda_graph=False)
    runner.load_state(zeros(2))
    decoded(runner, 2, 6)
    assert "cuStreamBeginCapture_v2" not in driver.calls
    assert runner.cuda_graph is False
    runner.cuda_graph = True
    runner.load_state(zeros(2))
    decoded(runner, 2, 6)
    assert driver.calls.count("cuStreamBeginCapture_v2") == 2
    runner.cuda_graph = False
    runner.load_state(zeros(2))
    launched = driver.calls.count("cuGraphLaunch")
    decoded(runner, 2, 6)
    assert driver.calls.count("cuGraphLaunch") == launched


@pytest.mark.parametrize("fails", ["capture", "instantiate"])
def test_what_cannot_be_captured_runs_without_a_graph(runner_on, fails):
    driver = Driver(fails)
    runner = runner_on(driver)
    runner.load_state(zeros(1))
    decoded(runner, 1, 12)
    assert "cuGraphLaunch" not in driver.calls
    assert runner.cuda_graph is False
    assert driver.calls.count("cuStreamBeginCapture_v2") <= 2
