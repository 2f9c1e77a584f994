"""Python plugins without TensorRT: in a stand-in that records, and in NVIDIA's own Python source.

The second needs a source tree of NVIDIA/TensorRT 10.9 or later, named by ``TENSORRT_ROOT``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from kernel_calls import DEVICE, to_numpy
from one_call import PRECISION, assert_within, make_call, rounded
from step_calls import CHIP, step_call, step_calls

from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, all_ops
from ssm_export_plugins import aot, container, kernels, ptx, python_plugins
from ssm_export_plugins.expressions import cdiv, maximum, minimum, parse, symbol

ROOT = Path(__file__).resolve().parents[2]
CALLS = step_calls()
IDS = [
    f"{spec.name}-{'whole' if len(call.present) > 6 else call.type('T')}" for spec, call in CALLS
]
BATCH = 3


class TensorDesc:
    """What a plugin sees of a tensor: here its sizes are numbers."""

    def __init__(self, shape=(), dtype=None):
        self.shape_expr, self.dtype = tuple(shape), dtype


class Tensor:
    pass


class Number:
    """A symbolic size whose value is known, refusing integers on the left as TensorRT's does."""

    def __init__(self, value):
        self.value = value.value if isinstance(value, Number) else value

    def __add__(self, other):
        return Number(self.value + Number(other).value)

    def __sub__(self, other):
        return Number(self.value - Number(other).value)

    def __mul__(self, other):
        return Number(self.value * Number(other).value)

    def __floordiv__(self, other):
        return Number(self.value // Number(other).value)


class SymIntExprs(list):
    @classmethod
    def from_tuple(cls, values):
        return cls(values)


class KernelLaunchParams:
    """``__setattr__`` makes a symbolic integer of what it is given, as TensorRT's does."""

    def __setattr__(self, name, value):
        self.__dict__[name] = Number(value).value


def stand_in(ahead_of_time=True):
    """A recording stand-in for ``tensorrt``; it checks nothing."""
    recorded = {}

    def decorator(kind):
        def for_name(name):
            def keep(function):
                recorded.setdefault(name, {})[kind] = function
                if kind == "register":
                    namespace, plain = name.split("::")
                    held = vars(plugin.op).setdefault(namespace, types.SimpleNamespace())
                    setattr(held, plain, function)
                return function

            return keep

        return for_name

    plugin = types.SimpleNamespace(
        **{kind: decorator(kind) for kind in ("register", "autotune", "impl", "aot_impl")},
        op=types.SimpleNamespace(),
        TensorDesc=TensorDesc,
        Tensor=Tensor,
        SymInt32=Number,
        ShapeExpr=Number,
        SymIntExprs=SymIntExprs,
        KernelLaunchParams=KernelLaunchParams,
        AutoTuneCombination=type("AutoTuneCombination", (tuple,), {
            "__new__": lambda cls, *words: tuple.__new__(cls, words)
        }),
        from_shape_expr=TensorDesc,
        cdiv=lambda a, b: Number(-(-Number(a).value // Number(b).value)),
        min=lambda a, b: Number(min(Number(a).value, Number(b).value)),
        max=lambda a, b: Number(max(Number(a).value, Number(b).value)),
    )  # fmt: skip
    trt = types.SimpleNamespace(
        __name__="tensorrt",
        __version__="10.9 stand-in",
        DataType=types.SimpleNamespace(FLOAT="FLOAT", HALF="HALF", BF16="BF16", INT32="INT32"),
        plugin=plugin,
    )
    if ahead_of_time:
        trt.QuickPluginCreationRequest = object
    return trt, recorded


def inputs_of(spec, call):
    """Generated inputs of a call, float64, in schema order."""
    sizes = {**spec.sizes, **call.sizes, "B": BATCH}
    omit = {port.name for port in spec.inputs} - call.present
    made = spec.make_inputs(np.random.default_rng(0), sizes, omit, True)
    return {p.name: made[p.name] for p in spec.inputs if p.name in call.present}


def types_of(spec, call):
    return {
        port.name: call.types.get(port.type, port.type) for port in (*spec.inputs, *spec.outputs)
    }


@pytest.mark.parametrize(("spec", "call"), CALLS, ids=IDS)
def test_what_is_registered_describes_the_call(spec, call):
    trt, recorded = stand_in()
    (name,) = python_plugins.register([(spec, call)], CHIP, trt=trt)
    assert name.startswith(f"ssm_export::{spec.name}_aot_") and list(recorded) == [name]
    assert set(recorded[name]) == {"register", "autotune", "aot_impl"}
    inputs, kinds = inputs_of(spec, call), types_of(spec, call)
    signature = inspect.signature(recorded[name]["register"])
    assert list(signature.parameters) == list(inputs)
    assert {p.annotation for p in signature.parameters.values()} == {TensorDesc}
    assert signature.return_annotation == tuple[TensorDesc, TensorDesc]
    descriptions = [TensorDesc(array.shape) for array in inputs.values()]
    outputs = recorded[name]["register"](*descriptions)
    expected = spec.reference(inputs, call.attributes)
    data = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int32": "INT32"}
    for port, output in zip(spec.outputs, outputs, strict=True):
        assert output.shape_expr == expected[port.name].shape
        assert output.dtype == data[kinds[port.name]]
    short = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "int32": "INT32"}
    words = [short[kinds[port]] for port in [*inputs, *(p.name for p in spec.outputs)]]
    assert recorded[name]["autotune"](*descriptions, outputs) == [(", ".join(words), "LINEAR")]


@pytest.mark.parametrize(("spec", "call"), CALLS, ids=IDS)
def test_the_kernel_is_launched_as_its_plan_says(spec, call):
    trt, recorded = stand_in()
    (name,) = python_plugins.register([(spec, call)], CHIP, trt=trt)
    inputs = inputs_of(spec, call)
    descriptions = [TensorDesc((Number(BATCH), *a.shape[1:])) for a in inputs.values()]
    signature = inspect.signature(recorded[name]["aot_impl"])
    assert list(signature.parameters) == [*inputs, "outputs", "tactic"]
    entry, code, launch, extra = recorded[name]["aot_impl"](*descriptions, (), 0)
    plan = next(iter(kernels.plans(spec, call, CHIP)))
    (only,) = plan.case({"B": BATCH}).launches
    grid = tuple(axis.value({"B": BATCH}) for axis in only.grid)
    assert (launch.grid_x, launch.grid_y, launch.grid_z) == grid
    (compiled,) = aot.compile_calls([(spec, call)], CHIP, ptx=True)
    (section,) = container.read(compiled.blob)
    (image,) = (image for image in section.images if image.kind == "ptx")
    assert (launch.block_x, launch.shared_mem) == (image.threads, image.shared)
    assert entry.decode() == image.entry == only.kernel.name
    text = code.decode()
    parameters = text[text.index(f"{image.entry}(") :].split(")")[0].count(".param")
    # What TensorRT passes: every input, every output, and the integers between them.
    assert parameters == len(inputs) + len(extra) + len(spec.outputs)
    assert image.extra and image.data.decode("ascii").count(".param .") > text.count(".param .")


def test_nvidia_assembler_takes_the_shortened_ptx(tmp_path):
    import triton

    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not assembler.exists():
        pytest.skip("this Triton has no ptxas")
    for spec, call in CALLS[::2]:
        (compiled,) = aot.compile_calls([(spec, call)], CHIP, ptx=True)
        kernel = python_plugins.kernel_of(compiled, python_plugins.only_launch(compiled.plan))
        (tmp_path / "k.ptx").write_bytes(kernel.ptx)
        line = [assembler, "-arch=sm_89", tmp_path / "k.ptx", "-o", tmp_path / "k.cubin"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


PTX = """.version 8.0
.visible .entry step(
	.param .u64 .ptr .global .align 1 step_param_0,
	.param .u64 .ptr .global .align 1 step_param_1,
	.param .u64 .ptr .global .align 1 step_param_10
)
.reqntid 128
{
	ld.param.b64 %rd1, [step_param_0];
	ld.param.b64 %rd2, [step_param_1];
	ret;
}
"""


def test_only_parameters_that_nobody_reads_are_taken_away():
    made = ptx.without_last_parameters(PTX, "step", 1)
    assert "step_param_10" not in made
    assert made.replace("\n)", ")", 1) == PTX.replace(
        ",\n\t.param .u64 .ptr .global .align 1 step_param_10\n)", ")"
    )
    assert ptx.without_last_parameters(PTX, "step", 0) == PTX
    for entry, count, words in (
        ("step", 2, "reads its parameter step_param_1,"),
        ("ste", 1, "no such entry"),
        ("step", 4, "no such entry"),
    ):
        with pytest.raises(SsmExportError, match=words) as raised:
            ptx.without_last_parameters(PTX, entry, count)
        assert raised.value.code.code == "SSM-E305"


def test_equal_calls_share_a_plugin_that_is_registered_once():
    trt, recorded = stand_in()
    spec = all_ops()["CausalConv1d"]
    call, other = (step_call(spec, {"T": kind}) for kind in ("float16", "bfloat16"))
    names = python_plugins.register([(spec, call), (spec, other), (spec, call)], CHIP, trt=trt)
    assert names[0] == names[2] != names[1] and set(recorded) == set(names)
    before = {name: dict(functions) for name, functions in recorded.items()}
    assert python_plugins.register([(spec, call)], CHIP, trt=trt) == names[:1]
    assert recorded == before
    (callback,) = python_plugins.register([(spec, call)], CHIP, ahead_of_time=False, trt=trt)
    assert callback not in before


@pytest.mark.parametrize(("spec", "call"), CALLS, ids=IDS)
def test_a_callback_computes_the_call(spec, call, monkeypatch):
    trt, recorded = stand_in(ahead_of_time=False)
    (name,) = python_plugins.register([(spec, call)], CHIP, ahead_of_time=False, trt=trt)
    assert set(recorded[name]) == {"register", "autotune", "impl"}
    signature = inspect.signature(recorded[name]["impl"])
    feeds = rounded(spec, inputs_of(spec, call), call.types)
    assert list(signature.parameters) == [*feeds, "outputs", "stream"]
    assert signature.return_annotation is None
    streams = []
    monkeypatch.setattr(python_plugins, "_torch", lambda operand, tensor: tensor)
    monkeypatch.setattr(torch.cuda, "ExternalStream", streams.append)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    from kernel_calls import to_torch

    kinds, expected = types_of(spec, call), spec.reference(feeds, call.attributes)
    outputs = tuple(
        torch.full(expected[p.name].shape, torch.nan, dtype=getattr(torch, kinds[p.name]),
                   device=DEVICE)
        for p in spec.outputs
    )  # fmt: skip
    recorded[name]["impl"](*map(to_torch, feeds.values()), outputs, stream=77)
    assert streams == [77]
    for port, made in zip(spec.outputs, outputs, strict=True):
        bound = spec.tolerances[PRECISION[call.types["T"]]]
        assert_within(to_numpy(made), expected[port.name], bound, port.name)


def test_a_step_graph_gets_the_names_of_its_plugins():
    trt, recorded = stand_in()
    spec = all_ops()["CausalConv1d"]
    feeds = rounded(spec, inputs_of(spec, step_call(spec, {"T": "float32"}, ("bias",))))
    model = make_call(spec, {n: v for n, v in feeds.items() if n != "bias"}, "step")
    before = ir.to_proto(model).SerializeToString()
    made = python_plugins.stamp(model, CHIP, trt=trt)
    assert ir.to_proto(model).SerializeToString() == before
    (node,) = list(made.graph)
    assert [f"ssm_export::{node.op_type}"] == list(recorded) and not made.functions
    assert {name: node.attributes[name].value for name in node.attributes} == {
        "plugin_namespace": "ssm_export",
        "plugin_version": "1",
        "aot": 1,
    }
    parameters = inspect.signature(recorded[f"ssm_export::{node.op_type}"]["register"]).parameters
    assert [value.name for value in node.inputs] == list(parameters)
    assert "bias" not in parameters


def test_expressions_are_what_they_are_in_plans():
    trt, _ = stand_in()
    B, T = symbol("B"), symbol("T")
    sizes = {"B": 5, "T": 7}
    found = [
        B * cdiv(T, 4), 20 - B, (T + 100) // 8, minimum(64, B * T), maximum(B, 3) - 1, 8 * T,
        parse("3 4 add"),
    ]  # fmt: skip
    for expression in found:
        made = python_plugins.symbolic(
            trt.plugin, expression, {name: Number(size) for name, size in sizes.items()}
        )
        assert Number(made).value == expression.value(sizes), str(expression)
    with pytest.raises(SsmExportError, match="'lt'"):
        python_plugins.symbolic(trt.plugin, B < T, {"B": Number(1), "T": Number(2)})


def test_prompts_are_refused():
    trt, recorded = stand_in()
    spec = all_ops()["SelectiveScan"]
    call = step_call(spec, {"T": "float16", "S": "float32"})
    prompt = Call(
        call.present, call.attributes, {k: v for k, v in call.sizes.items() if k != "T"}, call.types
    )
    with pytest.raises(SsmExportError, match="one token") as raised:
        python_plugins.register([(spec, prompt)], CHIP, trt=trt)
    assert raised.value.code.code == "SSM-E305" and not recorded
    plan = next(iter(kernels.plans(spec, prompt, CHIP)))
    with pytest.raises(SsmExportError, match="launches"):
        python_plugins.only_launch(plan)


def test_kernels_that_tensorrt_could_not_call_are_refused(monkeypatch):
    spec, call = CALLS[0]
    (compiled,) = aot.compile_calls([(spec, call)], CHIP, ptx=True)
    launch = python_plugins.only_launch(compiled.plan)
    swapped = dataclasses.replace(launch, arguments=launch.arguments[::-1])
    with pytest.raises(SsmExportError, match="in this order"):
        python_plugins.kernel_of(compiled, swapped)
    monkeypatch.setattr(python_plugins, "MOST_SHARED", -1)
    with pytest.raises(SsmExportError, match="shared memory"):
        python_plugins.kernel_of(compiled, launch)


def test_a_tensorrt_without_such_plugins_is_named():
    old, _ = stand_in(ahead_of_time=False)
    with pytest.raises(SsmExportError, match=r"10\.9 stand-in has no such.*TensorRT 10\.9 has"):
        python_plugins.register(CALLS[:1], CHIP, trt=old)
    rtx = pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX here")
    for ahead_of_time in (True, False):
        with pytest.raises(SsmExportError, match=r"tensorrt_rtx .* has no such") as raised:
            python_plugins.register(CALLS[:1], CHIP, ahead_of_time=ahead_of_time, trt=rtx)
        assert raised.value.code.code == "SSM-E601"


@pytest.mark.skipif(importlib.util.find_spec("tensorrt"), reason="TensorRT is installed")
def test_without_tensorrt_its_package_is_named():
    with pytest.raises(SsmExportError, match=r"ssm-export\[tensorrt\]"):
        python_plugins.register(CALLS[:1], CHIP)


def test_nvidias_own_source_takes_the_plugins():
    pytest.importorskip("tensorrt_rtx", reason="its compiled module stands in for TensorRT's")
    root = os.environ.get("TENSORRT_ROOT")
    folder = Path(root or ".") / "python" / "packaging" / "bindings_wheel"
    if root is None or not (folder / "tensorrt" / "plugin").is_dir():
        pytest.skip("TENSORRT_ROOT names no source tree of NVIDIA/TensorRT 10.9 or later")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, here / "nvidia_python_plugins.py", folder],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{here}", "TRITON_INTERPRET": "0"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines.pop() == {"impl": True, "aot": None}
    for (spec, call), found in zip(CALLS, lines, strict=True):
        expected = spec.reference(inputs_of(spec, call), call.attributes)
        plan = next(iter(kernels.plans(spec, call, CHIP)))
        (launch,) = plan.case({"B": BATCH}).launches
        grid = [axis.value({"B": BATCH}) for axis in launch.grid]
        assert found["op"] == spec.name and found["creator"] and found["tactics"] == []
        assert found["shapes"] == [list(expected[p.name].shape) for p in spec.outputs]
        assert [found["launch"][f"grid_{axis}"] for axis in "xyz"] == grid
        assert found["combination"][-2:] == found["types"]
        (compiled,) = aot.compile_calls([(spec, call)], CHIP, ptx=True)
        kernel = python_plugins.kernel_of(compiled, launch)
        assert found["ptx"] == hashlib.sha256(kernel.ptx).hexdigest()
        assert found["launch"]["block_x"] == kernel.threads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="wraps memory of a GPU")
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int32"])
def test_memory_of_a_gpu_is_wrapped_in_place(kind):
    from ssm_export_plugins.plan import Operand

    tensor = torch.arange(6, device="cuda").to(getattr(torch, kind)).view(2, 3)
    given = types.SimpleNamespace(shape=(2, 3), data_ptr=tensor.data_ptr())
    made = python_plugins._torch(Operand("x", kind, (2, 3)), given)
    made += 1
    assert torch.equal(made, tensor) and made.dtype == tensor.dtype
