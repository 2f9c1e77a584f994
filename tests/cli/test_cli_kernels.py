"""``ssm-export kernels``: what people see, the JSON document, the file, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from command_line import Ended
from one_call import make_call

from ssm_export.ops import get
from ssm_export.resources import load_plugins

pytest.importorskip("triton", reason="Triton is not installed")
Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph of one convolution, any batch and length."""
    spec = get("CausalConv1d")
    inputs = spec.make_inputs(np.random.default_rng(0), spec.sizes, (), False)
    model = make_call(spec, {n: v.astype(np.float32) for n, v in inputs.items()}, "chunked")
    ir.save(model, tmp_path / "conv.onnx")
    return tmp_path / "conv.onnx"


def test_the_document_and_the_file(ssm_export: Run, graph: Path, tmp_path: Path) -> None:
    load_plugins()
    from ssm_export_plugins import container

    output = tmp_path / "packs" / "conv.ssmk"
    words = ("kernels", graph, "--target", "jetson-orin-nano", "-o", output)
    done = ssm_export(*words, "--ptx", "--json")
    assert done.status == 0, done.stderr
    document = done.document
    assert document["schema"] == "ssm-export/kernels@1"
    assert document["compute_capability"] == "8.7"
    (operator,) = document["operators"]
    assert operator["op"] == "CausalConv1d"
    assert operator["nodes"] == ["layer/CausalConv1d"]
    assert {k["name"] for k in operator["kernels"]} == {
        "causal_conv1d_step",
        "causal_conv1d_prefill",
    }
    assert {k["kind"] for k in operator["kernels"]} == {"cubin", "ptx"}
    data = output.read_bytes()
    assert len(data) == document["bytes"] == document["engine_bytes"] == operator["bytes"]
    (section,) = container.read(data)
    assert [o.shape[:2] for o in section.inputs[:1]] == [("B", "T")]

    again = ssm_export(*words, "--json")  # without PTX: the file is replaced
    assert again.status == 0, again.stderr
    assert len(output.read_bytes()) == again.document["bytes"] < len(data)
    assert [path.name for path in output.parent.iterdir()] == ["conv.ssmk"]


def test_the_table(ssm_export: Run, graph: Path) -> None:
    done = ssm_export("kernels", graph, "--target", "rtx-ada")
    assert done.status == 0, done.stderr
    for word in ("rtx-ada", "8.9", "causal_conv1d_prefill", "registers", "spilled", "32x128"):
        assert word in done.stdout
    assert done.last_line.startswith("PASSED  ")


def test_outputs_that_cannot_be_written(ssm_export: Run, graph: Path, tmp_path: Path) -> None:
    notes, folder = tmp_path / "notes.txt", tmp_path / "folder"
    notes.write_text("kept")
    folder.mkdir()
    pack = folder / "old.ssmk"
    pack.write_bytes(b"SSMKRN01")
    refused = [
        (notes, "SSM-E102", str(notes)),
        (folder, "SSM-E101", f"-o {folder / 'kernels.ssmk'}"),
        (pack / "x.ssmk", "SSM-E101", f"'{pack}' is a file"),
    ]
    if Path("/proc").is_dir():  # where not even root may write
        refused.append((Path("/proc/x.ssmk"), "SSM-E106", "/proc/x.ssmk"))
    for output, code, named in refused:
        done = ssm_export("kernels", graph, "--target", "h100", "-o", output, "--json")
        error = done.document["error"]
        assert (done.status, error["code"]) == (2, code), error
        assert named in error["what"] + error["fix"]
        assert "remove" not in error["fix"]
    assert notes.read_text() == "kept"
    assert pack.read_bytes() == b"SSMKRN01"
    assert [path.name for path in folder.iterdir()] == ["old.ssmk"]


def test_a_graph_that_carries_its_kernels(ssm_export: Run, tmp_path: Path) -> None:
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("SsdScan", [value], {"kernels": "U1NN"}, domain="ssm_export.plugin")
    opsets = {"": 20, "ssm_export.plugin": 1}
    made = ir.Graph([value], node.outputs, nodes=[node], opset_imports=opsets, name="made")
    ir.save(ir.Model(made, ir_version=10), tmp_path / "unified.onnx")
    done = ssm_export("kernels", tmp_path / "unified.onnx", "--target", "h100", "--json")
    assert done.document["error"]["code"] == "SSM-E303"
    assert "its 1 scans carry their kernels already" in done.document["error"]["what"]


def test_inspect_shows_what_a_pack_holds(ssm_export: Run, graph: Path, tmp_path: Path) -> None:
    pack = tmp_path / "conv.ssmk"
    words = ("kernels", graph, "--target", "jetson-orin-nano", "-o", pack, "--json")
    compiled = ssm_export(*words).document["operators"][0]["kernels"]
    document = ssm_export("inspect", pack, "--json").document
    assert document["kind"] == "kernels"
    assert document["facts"]["compute_capabilities"] == ["8.7"]
    (call,) = document["packs"]
    assert call["op"] == "CausalConv1d"
    for mine, theirs in (("name", "name"), ("registers", "registers"), ("shared", "shared")):
        assert sorted(i[mine] for i in call["images"]) == sorted(k[theirs] for k in compiled)
    shown = ssm_export("inspect", pack).stdout
    for word in ("CausalConv1d 1", "causal_conv1d_prefill", "8.7 cubin", "registers", "Triton"):
        assert word in shown
    pack.write_bytes(pack.read_bytes()[:-9])
    done = ssm_export("inspect", pack, "--json")
    assert (done.status, done.document["error"]["code"]) == (1, "SSM-E307")
    assert done.document["error"]["where"] == str(pack)


def test_without_a_target_the_list_is_named(ssm_export: Run, graph: Path) -> None:
    assert (
        "ssm-export list targets" in ssm_export("kernels", graph, "--json").document["error"]["fix"]
    )


def test_what_is_refused(ssm_export: Run, graph: Path, tmp_path: Path) -> None:
    def code(*words: object) -> tuple[int, str]:
        done = ssm_export("kernels", *words, "--json")
        return done.status, done.document["error"]["code"]

    assert code(graph, "--target", "rtx-any") == (2, "SSM-E101")
    assert code(graph, "--target", "jetson-orion") == (2, "SSM-E105")
    assert code(graph) == (2, "SSM-E107")
    assert code(tmp_path / "nowhere", "--target", "h100") == (2, "SSM-E103")
    (tmp_path / "words.onnx").write_text("these are words, no graph")
    assert code(tmp_path / "words.onnx", "--target", "h100") == (1, "SSM-E304")
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Neg", [value])
    plain = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 20}, name="plain")
    ir.save(ir.Model(plain, ir_version=10), tmp_path / "plain.onnx")
    assert code(tmp_path / "plain.onnx", "--target", "h100") == (1, "SSM-E303")
