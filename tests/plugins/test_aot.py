"""Compiling without a GPU: every chip, the same bytes again, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from kernel_calls import ADA, ORIN, call_of
from one_call import make_call

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec, all_ops, fused_ops, get
from ssm_export.targets import all_targets, get_target, read_target
from ssm_export_plugins import aot, aot_cache, container, kernels, standard
from ssm_export_plugins.model_calls import model_calls
from ssm_export_plugins.plan import Chip

pytest.importorskip("triton", reason="Triton is not installed")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONV = get("CausalConv1d")
KNOWN = (all_ops() | fused_ops()).values()
OTHERS = [s for s in KNOWN if kernels.has_kernels(s.name) and s != CONV]
HALF = {"T": "float16", "S": "float32"}
by_capability = pytest.mark.parametrize(
    "capability", aot.CAPABILITIES, ids=lambda c: f"sm_{c[0]}{c[1]}"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is taken from the user's cache, and nothing left there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ssm-export" / "kernels"


def typical(spec: OpSpec, types: Mapping[str, str] = HALF, **sizes: int) -> Call:
    inputs = spec.make_inputs(np.random.default_rng(0), {**spec.sizes, **sizes}, (), False)
    return call_of(spec, inputs, types)


def chip(capability: tuple[int, int]) -> Chip:
    """A chip of a capability with the shared memory that every one of them has."""
    return Chip(capability, ADA.shared_memory, 16)


def compiled_for(
    capability: tuple[int, int], calls: list[tuple[OpSpec, Call]]
) -> list[aot.Compiled]:
    """The calls, compiled; skips where this Triton is older than the chip."""
    try:
        return aot.compile_calls(calls, chip(capability))
    except SsmExportError as error:
        if "has no assembler" in error.what:
            pytest.skip(error.what)
        raise


def check(compiled: aot.Compiled, capability: tuple[int, int]) -> None:
    """Cubins for the chip, one per kernel of the plan, with arguments that make sense."""
    (section,) = container.read(compiled.blob)
    number = 10 * capability[0] + capability[1]
    assert section.op == compiled.spec.name
    assert [i.entry for i in section.images] == [k.name for k in compiled.plan.kernels()]
    assert [i.capability for i in section.images] == [number] * len(section.images)
    for image, kernel, said in zip(
        section.images, compiled.plan.kernels(), compiled.report["kernels"], strict=True
    ):
        assert image.data[:4] == b"\x7fELF"
        assert image.data[18:20] == (190).to_bytes(2, "little")  # EM_CUDA
        assert image.threads == 32 * kernel.num_warps
        assert 0 < image.registers <= 255
        assert image.shared <= compiled.chip.shared_memory
        assert image.extra == 2
        assert said["registers"] == image.registers
        assert said["bytes"] == len(image.data)
        assert f".text.{kernel.name}".encode() in image.data


@by_capability
def test_every_capability(capability: tuple[int, int]) -> None:
    (compiled,) = compiled_for(capability, [(CONV, typical(CONV))])
    check(compiled, capability)
    assert [kernel["spills"] for kernel in compiled.report["kernels"]] == [0, 0]


@pytest.mark.slow
@by_capability
@pytest.mark.parametrize("spec", OTHERS, ids=lambda spec: spec.name)
def test_every_operator_for_every_capability(spec: OpSpec, capability: tuple[int, int]) -> None:
    calls = [(spec, typical(spec, {"T": kind, "S": "float32"})) for kind in ("float32", "bfloat16")]
    for compiled in compiled_for(capability, calls):
        check(compiled, capability)


@pytest.mark.parametrize("capability", [(8, 7), (9, 0), (12, 0)], ids=lambda c: f"sm_{c[0]}{c[1]}")
def test_one_launch_of_a_layer_without_spills(capability: tuple[int, int]) -> None:
    """A token of Mamba-2 at the sizes of mamba2-2.7b, in each generation of tensor cores."""
    spec = fused_ops()["ConvSsdScan"]
    sizes = {"H": 80, "P": 64, "N": 128, "D": 80 * 64 + 2 * 128, "K": 4, "T": 1}
    call = Call(frozenset(port.name for port in spec.inputs), spec.attributes, sizes, HALF)
    (compiled,) = compiled_for(capability, [(spec, call)])
    check(compiled, capability)
    first = compiled.plan.cases[0].launches
    assert [launch.kernel.name for launch in first] == ["conv_ssd_scan_step"]
    assert {kernel["spills"] for kernel in compiled.report["kernels"]} == {0}


def standard_calls(kind: str) -> list[tuple[OpSpec, Call]]:
    """Every update rule of LinearAttention at a published width, and CausalConvWithState."""
    heads = 4
    row = ["B", "T"]
    shapes: dict[str, list[Any]] = {name: [*row, heads * 128] for name in ("query", "key", "value")}
    gates = {"decay": [*row, heads], "beta": [*row, heads]}
    state = {"past_state": ["B", heads, 128, 128]}
    calls = []
    for rule, wanted in (
        ("linear", ()),
        ("gated", ("decay",)),
        ("delta", ("beta",)),
        ("gated_delta", ("decay", "beta")),
    ):
        given = {**shapes, **state, **{name: gates[name] for name in wanted}}
        types = {**dict.fromkeys(given, kind), "past_state": "float32"}
        attributes = {"q_num_heads": heads, "kv_num_heads": heads, "update_rule": rule}
        call = standard.call("LinearAttention", given, types, {**attributes, "scale": 1.0})
        calls.append((standard.get("LinearAttention"), call))
    given = {"input": ["B", 512, "T"], "weight": [512, 1, 4], "bias": [512],
             "past_state": ["B", 512, 3]}  # fmt: skip
    types = dict.fromkeys(given, kind)
    call = standard.call("CausalConvWithState", given, types, {"activation": "silu"})
    return [*calls, (standard.get("CausalConvWithState"), call)]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 7), (9, 0), (12, 0)], ids=lambda c: f"sm_{c[0]}{c[1]}")
def test_the_standard_operators(capability: tuple[int, int]) -> None:
    for compiled in compiled_for(capability, standard_calls("float16")):
        check(compiled, capability)


@pytest.mark.slow
def test_the_kernels_of_64_layers_stay_below_ten_megabytes() -> None:
    """Mamba-2 at 2.7b: each node of a graph carries its own, as text, and so does an engine."""
    conv = typical(CONV, D=5120 + 2 * 128, K=4)
    scan = typical(get("SsdScan"), H=80, P=64, G=1, N=128)
    compiled = aot.compile_calls([(CONV, conv), (get("SsdScan"), scan)], ORIN)
    assert 64 * sum(len(one.blob) for one in compiled) * 4 / 3 < 10e6


def test_the_figures_are_those_of_nvidia_s_own_tool(tmp_path: Path) -> None:
    """``cuobjdump``, which comes with Triton, reads the registers from the machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        pytest.skip("this Triton comes without cuobjdump")
    (compiled,) = aot.compile_calls([(CONV, typical(CONV))], ORIN)
    for image in container.read(compiled.blob)[0].images:
        file = tmp_path / f"{image.entry}.cubin"
        file.write_bytes(image.data)
        said = subprocess.run(
            [str(tool), "-res-usage", str(file)], capture_output=True, text=True, check=True
        )
        text = said.stdout + said.stderr
        assert f"Function {image.entry}:" in text
        assert f"REG:{image.registers} " in text
        assert "STACK:0" in text


def test_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    """Other processes, other cache folders, another folder to work in: no byte differs."""
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        made.append(aot.compile_calls([(CONV, typical(CONV))], ORIN, ptx=True)[0].blob)
    assert made[0] == made[1]
    images = b"".join(image.data for image in container.read(made[0])[0].images)
    assert str(ROOT).encode() not in images
    assert str(tmp_path).encode() not in images
    assert b"causal_conv1d.py" not in images
    assert b"/tmp" not in images


def test_ptx_for_later_chips() -> None:
    (compiled,) = aot.compile_calls([(CONV, typical(CONV))], chip((9, 0)), ptx=True)
    images = container.read(compiled.blob)[0].images
    assert [(i.index, i.kind, i.capability) for i in images] == [
        (0, "cubin", 90), (0, "ptx", 80), (1, "cubin", 90), (1, "ptx", 80),
    ]  # fmt: skip
    for image in images:
        if image.kind == "ptx":
            text = image.data.decode()
            assert text.endswith("\0")
            assert ".target sm_80\n" in text
            assert ".version 8.0\n" in text
            assert f".visible .entry {image.entry}(" in text


def test_equal_calls_are_compiled_once_and_kept(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    started = []
    inside = aot.compile_in_children
    monkeypatch.setattr(aot, "compile_in_children", lambda r: started.append(len(r)) or inside(r))
    one, other = typical(CONV), typical(CONV, D=12)
    calls = [(CONV, one), (CONV, other), (CONV, typical(CONV))]
    first = aot.compile_calls(calls, ORIN)
    assert first[0] is first[2]
    assert first[0].blob != first[1].blob
    second = aot.compile_calls(calls, ORIN)
    assert started == [2, 0]
    assert [c.blob for c in second] == [c.blob for c in first]
    assert second[0].report == first[0].report

    for file in own_cache.iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert aot.compile_calls(calls[:1], ORIN)[0].blob == first[0].blob
    assert started == [2, 0, 1]
    for file in own_cache.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    key = aot_cache.digest("CausalConv1d", other, ORIN, False, aot.triton_version())
    assert (own_cache / key).is_file()
    assert aot_cache.load(key) is None


def odd(case: str, tmp_path: Path) -> dict[str, Any]:
    """The compiler's answer for kernels that no operator has."""
    from ssm_export_plugins.aot_children import _environment

    done = subprocess.run(
        [sys.executable, str(HERE / "odd_kernels.py"), case],
        env=_environment(str(tmp_path / "triton")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_too_much_shared_memory_and_the_next_one_is_taken(tmp_path: Path) -> None:
    answer = odd("shared memory", tmp_path)
    assert answer["choice"] == 1
    assert answer["report"]["label"] == "512"
    (refused,) = answer["report"]["refused"]
    assert refused["label"] == "1024"
    assert "row_sum needs 32 bytes of shared memory per block, the chip has 16" in refused["reason"]


def test_none_fits(tmp_path: Path) -> None:
    error = odd("shared memory of none", tmp_path)["error"]
    assert error["code"] == errors.KERNEL_COMPILE_FAILED.code
    assert error["where"] == "CausalConv1d"
    assert "row_sum needs 32 bytes" in error["what"]
    assert "the chip has 16" in error["what"]


def test_registers_that_spill(tmp_path: Path) -> None:
    report = odd("spills", tmp_path)["report"]
    assert (report["label"], report["kernels"][0]["spills"]) == ("512", 0)
    (refused,) = report["refused"]
    assert "row_sum spills" in refused["reason"]


def test_where_all_spill_the_one_that_spills_least(tmp_path: Path) -> None:
    report = odd("spills always", tmp_path)["report"]
    assert report["label"] == "8192"
    assert report["kernels"][0]["spills"] > 0
    assert [entry["label"] for entry in report["refused"]] == ["16384"]


def test_a_kernel_that_does_not_compile(tmp_path: Path) -> None:
    answer = odd("broken", tmp_path)
    assert answer["choice"] == 1
    assert "broken does not compile" in answer["report"]["refused"][0]["reason"]


def test_a_call_beyond_the_kernels(own_cache: Path) -> None:
    with pytest.raises(SsmExportError, match="9 taps") as caught:
        aot.compile_calls([(CONV, typical(CONV, K=9))], ORIN)
    assert caught.value.code == errors.KERNEL_UNSUPPORTED
    assert not own_cache.exists()


def test_unknown_chips() -> None:
    with pytest.raises(SsmExportError, match=r"compute capability 7\.5") as caught:
        aot.compile_calls([(CONV, typical(CONV))], Chip((7, 5), 65536, 40))
    assert caught.value.code == errors.BAD_OPTION
    with pytest.raises(SsmExportError, match="stands for many GPUs") as caught:
        aot.chip_of(get_target("rtx-any"))
    assert caught.value.code == errors.BAD_OPTION


# The CUDA programming guide's limits of shared memory per block, in bytes.
SHARED = {(8, 0): 166_912, (8, 6): 101_376, (8, 7): 166_912, (8, 9): 101_376, (9, 0): 232_448,
          (10, 0): 232_448, (11, 0): 232_448, (12, 0): 101_376, (12, 1): 101_376}  # fmt: skip


def test_chips_of_targets(tmp_path: Path) -> None:
    for target in all_targets():
        if target.capability is not None:
            made = aot.chip_of(target)
            assert made.shared_memory == SHARED[made.capability]
            assert made.multiprocessors >= 8
            assert made.capability in aot.CAPABILITIES
    assert aot.chip_of(get_target("jetson-orin-nano")) == ORIN
    file = tmp_path / "mine.yaml"
    file.write_text(
        "description: d\ncompute_capability: '8.6'\nengines: [tensorrt]\nprecisions: [fp16]\n"
        "shared_memory_per_block_kb: 99\n"
    )
    with pytest.raises(SsmExportError, match="'multiprocessors'") as caught:
        aot.chip_of(read_target(file))
    assert caught.value.code == errors.BAD_CONFIG_FILE


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(SsmExportError, match=r"ssm-export\[kernels\]") as caught:
        aot.compile_calls([(CONV, typical(CONV))], ORIN)
    assert caught.value.code == errors.MISSING_PACKAGE


def test_a_compiler_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssm_export_plugins import aot_children

    script = "import os, sys; sys.stderr.write('out of memory\\n'); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(aot_children, "_BOOT", script)
    with pytest.raises(SsmExportError, match=r"SIGKILL.*out of memory") as caught:
        aot.compile_calls([(CONV, typical(CONV))], ORIN)
    assert caught.value.code == errors.KERNEL_COMPILE_FAILED


@pytest.mark.parametrize("spec", all_ops().values(), ids=lambda spec: spec.name)
@pytest.mark.parametrize("form", ["step", "chunked"])
def test_the_calls_of_a_graph(spec: OpSpec, form: str) -> None:
    sizes = {**spec.sizes, "T": 1 if form == "step" else 5}
    rng = np.random.default_rng(0)
    inputs = spec.make_inputs(rng, sizes, (), False)
    typed = {name: value.astype(np.float32) for name, value in inputs.items()}
    typed |= {n: v.astype(np.int32) for n, v in inputs.items() if n == "sequence_lengths"}
    model = make_call(spec, typed, form)
    ((node, found, call),) = model_calls(model)
    assert (node.op_type, found) == (spec.name, spec)
    assert call.present == frozenset(inputs)
    expected = call_of(spec, typed, {}, step=form == "step")
    assert call.sizes == {**expected.sizes, **({"T": 1} if form == "step" else {})}
    assert set(call.types.values()) == {"float32"}
    assert call.attributes == dict(spec.attributes)

    node.inputs[0].shape = None
    with pytest.raises(SsmExportError, match="not known") as caught:
        model_calls(model)
    assert caught.value.code == errors.BAD_OPERATOR_CALL


def test_an_operator_that_is_none_of_ours() -> None:
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("SsdScam", [value], domain="ssm_export", name="layer")
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 20, "ssm_export": 1})
    with pytest.raises(SsmExportError, match="SsdScam"):
        model_calls(ir.Model(graph, ir_version=10))
