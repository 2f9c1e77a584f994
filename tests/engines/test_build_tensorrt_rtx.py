"""Real builds with TensorRT-RTX, which needs no GPU for them, and everything that stops a build."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper
from two_state_bundle import edit_graph, make_toy

from ssm_export import errors
from ssm_export.bundle import Bundle, sha256
from ssm_export.engines import tensorrt
from ssm_export.engines.tensorrt import BUILT_ONLY, build, trtexec_commands
from ssm_export.errors import SsmExportError
from ssm_export.machine import find_gpus
from ssm_export.targets import get_target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)


class Bars:
    """Counts what a progress bar is told."""

    def __init__(self):
        self.seen = {}

    def task(self, label, total=None):
        self.seen[label] = [0, total]
        return _Bar(self.seen[label])


class _Bar:
    def __init__(self, count):
        self.count = count

    def advance(self, amount=1.0):
        self.count[0] += amount


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_both_forms_are_built_and_entered(tmp_path, precision, capfd):
    toy = make_toy(tmp_path / "toy", precision)
    bars = Bars()
    report = build(toy.bundle, "rtx-any", max_batch=4, max_chunk=96, opt_chunk=32, progress=bars)
    again = Bundle.open(toy.bundle.path)
    assert again.manifest.engines == report.engines == tuple(report)
    assert {entry.form for entry in report} == {"step", "prefill"}
    for entry in report:
        path = toy.bundle.path / "engines/rtx-any" / f"{entry.form}.engine"
        assert again.file(entry.file) == path
        assert (entry.file.bytes, entry.file.sha256) == (path.stat().st_size, sha256(path))
        assert entry.compute_capability == "8.6+"
        assert entry.versions["tensorrt_rtx"].startswith("1.")
        assert not entry.ran
        if not find_gpus():
            assert entry.note == BUILT_ONLY == "built, not run: no GPU"
    profiles = {entry.form: entry.profile for entry in report}
    assert profiles["step"] == {"batch": [1, 1, 4]}
    assert profiles["prefill"] == {"batch": [1, 1, 4], "time": [1, 32, 96]}
    assert all(done == total and total > 0 for done, total in bars.seen.values())
    assert len(bars.seen) == 2
    assert sorted(os.listdir(path.parent)) == ["prefill.engine", "step.engine"]
    assert capfd.readouterr() == ("", "")
    saved = json.loads((toy.bundle.path / "reports/build-rtx-any-tensorrt-rtx.json").read_text())
    assert saved["seconds"].keys() == saved["commands"].keys() == {"step", "prefill"}
    assert "POLYGRAPHY_USE_TENSORRT_RTX" not in os.environ


@needs_rtx
def test_a_second_build_takes_the_place_of_the_first(toy):
    build(toy.bundle, "rtx-ada")
    build(toy.bundle, "rtx-blackwell")
    build(toy.bundle, "rtx-ada", max_batch=2)
    batches = {
        (entry.target, entry.form): entry.profile["batch"][2]
        for entry in Bundle.open(toy.bundle.path).manifest.engines
    }
    assert batches == {
        ("rtx-ada", "step"): 2,
        ("rtx-ada", "prefill"): 2,
        ("rtx-blackwell", "step"): 8,
        ("rtx-blackwell", "prefill"): 8,
    }
    capabilities = {entry.compute_capability for entry in toy.bundle.manifest.engines}
    assert capabilities == {"8.9", "12.0"}


@needs_rtx
def test_a_bundle_without_native_graphs_gets_them(tmp_path):
    toy = make_toy(tmp_path / "toy", lowerings=("canonical",))
    build(toy.bundle)
    again = Bundle.open(toy.bundle.path)
    for form in ("step", "prefill"):
        path = again.graph_path(form, "native")
        assert path.name == f"{form}.native.onnx"
        onnx.checker.check_model(str(path))
        assert path.stat().st_size < 20_000


def _insert(op_type, domain="", inside_if=False):
    """An edit that puts a node before the head of the graph."""

    def edit(model):
        node = helper.make_node(op_type, ["y"], ["foreign"], name="the_foreign_one", domain=domain)
        head = next(node for node in model.graph.node if node.name == "lm_head")
        if inside_if:
            output = [helper.make_tensor_value_info("foreign", TensorProto.FLOAT, None)]
            branch = helper.make_graph([node], "branch", [], output)
            yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
            model.graph.initializer.append(yes)
            node = helper.make_node(
                "If", ["yes"], ["foreign"], then_branch=branch, else_branch=branch
            )
        model.graph.node.insert(len(model.graph.node) - 1, node)
        head.input[0] = "foreign"
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return edit


def _nothing_was_left(toy):
    assert not (toy.bundle.path / "engines").exists()
    assert not Bundle.open(toy.bundle.path).manifest.engines


@pytest.mark.parametrize("inside_if", [False, True])
@pytest.mark.parametrize(
    ("op_type", "domain"),
    [
        ("SsdScan", "ssm_export"),
        ("GatedRMSNorm", "com.microsoft"),
        ("LinearAttention", ""),
        ("CausalConvWithState", ""),
        ("MyPlugin", ""),
    ],
)
def test_what_would_reach_a_plugin_is_refused_before_the_parser(
    toy, monkeypatch, op_type, domain, inside_if
):
    edit_graph(toy.bundle, "prefill", _insert(op_type, domain, inside_if))
    monkeypatch.setattr(tensorrt, "require_packages", lambda kind: None)
    monkeypatch.setattr(tensorrt, "installed_version", lambda name: "1.7")
    monkeypatch.setattr(
        tensorrt, "build_in_child", lambda *_: pytest.fail("the parser was reached")
    )
    with pytest.raises(SsmExportError, match=f"{op_type} .*'the_foreign_one'") as caught:
        build(toy.bundle)
    assert caught.value.code == errors.PLUGIN_IN_GRAPH
    _nothing_was_left(toy)


@needs_rtx
def test_an_opset_that_the_parser_does_not_know_is_refused(toy):
    def newer(model):
        model.opset_import[0].version = 27

    edit_graph(toy.bundle, "step", newer)
    with pytest.raises(SsmExportError, match="opset 27") as caught:
        build(toy.bundle)
    assert caught.value.code == errors.LOWERING_FAILED
    _nothing_was_left(toy)


@needs_rtx
def test_a_truncated_graph_is_refused(toy):
    entry = toy.bundle.manifest.graphs["step"]["native"]
    path = toy.bundle.path / entry.path
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SsmExportError) as caught:
        build(toy.bundle.path)
    assert caught.value.code == errors.HASH_MISMATCH
    with pytest.raises(SsmExportError, match=r"step\.native\.onnx") as caught:
        build(Bundle.open(toy.bundle.path, check_hashes=False))
    assert caught.value.code == errors.GRAPH_INVALID


@needs_rtx
def test_the_parsers_own_words_reach_the_user(toy):
    def wrong_axis(model):
        taps = next(node for node in model.graph.node if node.name == "taps")
        taps.attribute[0].i = 7

    edit_graph(toy.bundle, "prefill", wrong_axis)
    with pytest.raises(SsmExportError, match=r"prefill engine.*(taps|axis)") as caught:
        build(toy.bundle)
    assert caught.value.code == errors.ENGINE_BUILD_FAILED
    _nothing_was_left(toy)


@needs_rtx
def test_truncated_weights_fail_the_build(toy):
    weights = toy.bundle.path / "onnx/weights.data"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(SsmExportError) as caught:
        build(Bundle.open(toy.bundle.path, check_hashes=False))
    assert caught.value.code == errors.ENGINE_BUILD_FAILED
    assert not (toy.bundle.path / "engines").exists()


@needs_rtx
def test_the_engine_must_have_the_states_of_the_manifest(toy):
    from dataclasses import replace

    first, second = toy.bundle.manifest.states
    toy.bundle.manifest.states = (replace(first, dtype="float16"), second)
    with pytest.raises(SsmExportError, match=r"'past_conv\.0' is float32 .* float16") as caught:
        build(toy.bundle)
    assert caught.value.code == errors.ENGINE_BUILD_FAILED


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("os.abort()", "signal SIGABRT; the last it said: .*terminate called"),
        ("os._exit(9)", "exit status 9; the last it said: .*terminate called"),
    ],
)
def test_a_builder_that_dies_is_an_error_and_not_our_end(toy, tmp_path, monkeypatch, ending, said):
    fake = tmp_path / "fake"
    fake.mkdir()
    text = f"import os, sys\nprint('terminate called', flush=True)\n{ending}\n"
    (fake / "tensorrt_rtx.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(fake))
    monkeypatch.setattr(tensorrt, "require_packages", lambda kind: None)
    monkeypatch.setattr(tensorrt, "installed_version", lambda name: "1.7")
    with pytest.raises(SsmExportError, match=said) as caught:
        build(toy.bundle)
    assert caught.value.code == errors.ENGINE_BUILD_FAILED
    _nothing_was_left(toy)


def test_an_interrupt_leaves_nothing_behind(toy, monkeypatch):
    def interrupted(request, label, progress):
        request.output.write_bytes(b"half an engine")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt, "require_packages", lambda kind: None)
    monkeypatch.setattr(tensorrt, "installed_version", lambda name: "1.7")
    monkeypatch.setattr(tensorrt, "build_in_child", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(toy.bundle)
    _nothing_was_left(toy)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_batch": 0}, "max-batch is 0"),
        ({"max_batch": 2, "opt_batch": 3}, "opt-batch is 3 and max-batch is 2"),
        ({"max_chunk": 0}, "max-chunk is 0"),
        ({"opt_chunk": 2000}, "opt-chunk is 2000"),
        ({"engine": "openvino"}, "no engine kind 'openvino'"),
        ({"target": "h100", "engine": "tensorrt-rtx"}, r"does not build for h100 \(9\.0\)"),
    ],
)
def test_options_that_cannot_be(toy, options, said):
    with pytest.raises(SsmExportError, match=said) as caught:
        build(toy.bundle, **options)
    assert caught.value.code == errors.BAD_OPTION


def test_an_unknown_target_names_the_nearest(toy):
    with pytest.raises(SsmExportError, match="did you mean 'jetson-agx-orin'") as caught:
        build(toy.bundle, "jetson-orin-agx")
    assert caught.value.code == errors.UNKNOWN_TARGET


def test_without_the_package_the_extra_is_named(toy, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if "tensorrt" in name else find(name, *a)
    )
    # A machine with the GPU of the second target, or else that would be said first.
    monkeypatch.setattr(tensorrt, "_check_gpu", lambda target, gpus: None)
    for target, extra in (("rtx-any", "rtx"), ("jetson-thor", "tensorrt")):
        with pytest.raises(SsmExportError, match=rf"ssm-export\[{extra}\]") as caught:
            build(toy.bundle, target)
        assert caught.value.code == errors.MISSING_PACKAGE


@pytest.mark.skipif(bool(find_gpus()), reason="this machine has a GPU")
def test_full_tensorrt_builds_on_the_device_only(toy):
    with pytest.raises(SsmExportError, match="copy the bundle there") as caught:
        build(toy.bundle, "jetson-agx-orin")
    assert caught.value.code == errors.NO_GPU


def test_the_command_of_the_vendors_tool(toy):
    commands = trtexec_commands(toy.bundle, "rtx-ada", max_batch=4, max_chunk=64, opt_chunk=16)
    words = commands["prefill"].split()
    folder = toy.bundle.path
    assert words[0] == "tensorrt_rtx"
    assert f"--onnx={folder}/onnx/prefill.native.onnx" in words
    assert f"--saveEngine={folder}/engines/rtx-ada/prefill.engine" in words
    assert "--optShapes=input_ids:1x16,past_conv.0:1x1x4,past_ssm.0:1x4x3" in words
    assert "--maxShapes=input_ids:4x64,past_conv.0:4x1x4,past_ssm.0:4x4x3" in words
    assert "--computeCapabilities=89" in words
    step = trtexec_commands(toy.bundle, "rtx-ada", "tensorrt")["step"].split()
    assert step[0] == "trtexec"
    assert f"--saveEngine={folder}/engines/rtx-ada/step.tensorrt.engine" in step
    assert "--maxShapes=input_ids:8x1,past_conv.0:8x1x4,past_ssm.0:8x4x3" in step
    assert "--stronglyTyped" in step


@needs_rtx
def test_importing_the_builder_does_not_load_the_library():
    code = (
        "import sys, ssm_export.engines.tensorrt as t; "
        "print([m for m in ('tensorrt_rtx', 'polygraphy', 'onnx', 'torch') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert said.stdout.strip() == "[]"


@needs_rtx
def test_a_bundle_that_moved_still_builds(toy, tmp_path):
    moved = tmp_path / "another place"
    shutil.move(toy.bundle.path, moved)
    assert len(build(moved)) == 2
    assert get_target("rtx-any").engines == ("tensorrt-rtx",)
