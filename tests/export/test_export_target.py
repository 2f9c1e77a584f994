"""``export --target``: what naming a device chooses, foretells and refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re

import onnx
import pytest
import yaml

from ssm_export import errors
from ssm_export.bundle import UNIFIED, Bundle
from ssm_export.errors import SsmExportError
from ssm_export.export_target import compile_kernels, precision_for, wants_plugins
from ssm_export.exporter import EXPORT_REPORT, ExportOptions, export
from ssm_export.prediction import Needs, predict, predict_needs
from ssm_export.progress import SILENT
from ssm_export.targets import OWN_TARGETS, all_targets, get_target

pytest.importorskip("torch")
TRITON = importlib.util.find_spec("triton") is not None
BOARD = {
    "description": "a board",
    "compute_capability": "8.7",
    "engines": ["tensorrt"],
    "precisions": ["fp32", "fp16", "bf16"],
    "memory_gb": 1,
    "unified_memory": True,
    "bandwidth_gb_s": 10,
}


@pytest.fixture
def board(tmp_path, monkeypatch):
    """``board(free)``: a target of one's own with so many bytes free, by its name."""

    def make(free: float) -> str:
        folder = tmp_path / "targets"
        folder.mkdir(exist_ok=True)
        # Whole files round, so the reserve is taken up to a whole byte.
        facts = {**BOARD, "reserve_gb": 1 - free / 2**30}
        (folder / "tiny-board.yaml").write_text(yaml.safe_dump(facts))
        monkeypatch.setenv(OWN_TARGETS, str(folder))
        return "tiny-board"

    return make


def dry(checkpoint, tmp_path, **options):
    return export(checkpoint, tmp_path / "bundle", ExportOptions(**options), dry_run=True)


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({}, "fp32"),
        ({"target": "jetson-agx-orin"}, "fp16"),
        ({"target": "rtx-any"}, "fp16"),
        ({"target": "h100", "precision": "fp32"}, "fp32"),
        ({"target": "h100", "precision": "bf16"}, "bf16"),
        ({"precision": "fp16"}, "fp16"),
    ],
)
def test_precision_follows_the_target_unless_given(tiny_checkpoint, tmp_path, options, precision):
    report = dry(tiny_checkpoint("mamba"), tmp_path, **options)
    assert report.plan["options"]["precision"] == precision
    parameters, held = report.plan["parameters"], report.plan["weights_bytes"]
    if precision == "fp32":
        assert held == 4 * parameters
    else:  # A, D and the bias of dt stay fp32
        assert 2 * parameters < held < 2.5 * parameters
    assert (report.prediction is None) == ("target" not in options)


def test_a_device_without_fp16_gets_fp32():
    plain = dataclasses.replace(get_target("h100"), precisions=("fp32",))
    assert (precision_for(plain), precision_for(get_target("h100"))) == ("fp32", "fp16")


def test_kernels_are_for_devices_that_build_with_tensorrt():
    plugins = {target.name for target in all_targets() if wants_plugins(target)}
    boards = {target.name for target in all_targets() if target.jetpack}
    assert plugins == boards | {"a100", "h100", "h200", "b200", "l4"}


def test_a_device_of_tensorrt_rtx_takes_the_native_graphs(tiny_checkpoint, tmp_path):
    report = dry(tiny_checkpoint("mamba"), tmp_path, target="rtx-4090")
    (note,) = report.notes
    assert "no kernels are compiled for rtx-4090: tensorrt-rtx builds the native graphs" in note
    assert report.plan["kernels"] is False


@pytest.mark.skipif(not TRITON, reason="triton is not installed")
@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({}, False),
        ({"target": "jetson-thor"}, True),
        ({"target": "jetson-thor", "lowering": "native"}, False),
        ({"target": "rtx-4090", "lowering": "plugin"}, True),
    ],
)
def test_a_dry_run_says_whether_kernels_are_compiled(tiny_checkpoint, tmp_path, options, kernels):
    assert dry(tiny_checkpoint("mamba"), tmp_path, **options).plan["kernels"] is kernels


def test_what_is_foretold_is_what_the_bundle_gives(tiny_checkpoint, tmp_path, family):
    """Before anything is traced, and from the files that were made of it."""
    options = ExportOptions(
        parity="quick", target="jetson-agx-orin", lowering="native", verify=False
    )
    report = export(tiny_checkpoint(family), tmp_path / "bundle", options)
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.precision == "fp16"
    assert UNIFIED not in bundle.manifest.graphs  # native was asked for
    told, found = report.prediction, predict(bundle, get_target("jetson-agx-orin"))
    tensors = onnx.load(str(bundle.graph_path("prefill", "native"))).graph.initializer
    assert told.weights_bytes == pytest.approx(sum(len(t.raw_data) for t in tensors), rel=0.01)
    assert told.weights_bytes < found.weights_bytes  # whose tensors are aligned
    assert told.decode_tokens_per_s == pytest.approx(found.decode_tokens_per_s, rel=0.01)
    assert told.prefill_tokens_per_s == pytest.approx(found.prefill_tokens_per_s, rel=0.01)
    assert told.states_bytes == found.states_bytes
    kept = json.loads((tmp_path / "bundle" / EXPORT_REPORT).read_text())
    assert kept["target"] == "jetson-agx-orin"
    assert kept["prediction"] == json.loads(json.dumps(told.as_json()))
    assert kept["prediction"]["predicted"] is True


def test_without_triton_a_board_is_told_what_is_missing(tiny_checkpoint, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "triton" else find(name, *rest),
    )
    (note,) = dry(tiny_checkpoint("mamba"), tmp_path, target="jetson-agx-orin").notes
    assert "Triton" in note and "ssm-export[kernels]" in note


@pytest.mark.slow
@pytest.mark.skipif(not TRITON, reason="triton is not installed")
def test_a_board_gets_its_kernels(tiny_checkpoint, tmp_path):
    options = ExportOptions(parity="quick", target="jetson-agx-orin", verify=False)
    report = export(tiny_checkpoint("mamba2"), tmp_path / "bundle", options)
    graphs = Bundle.open(tmp_path / "bundle").manifest.graphs
    assert set(graphs[UNIFIED]) == {"plugin-jetson-agx-orin"}
    assert {"native", "ort"} <= set(graphs["prefill"])  # ONNX Runtime verifies those
    assert any("compiled and not run" in note for note in report.notes)


def test_kernels_that_cannot_be_end_only_an_export_that_asked(monkeypatch, bundle_of):
    """A compiler that finds no kernel for a width."""

    def fails(*_):
        raise SsmExportError(errors.KERNEL_UNSUPPORTED, "no kernel for this width")

    monkeypatch.setattr("ssm_export.export_target.plugin_graph", fails)
    monkeypatch.setattr("ssm_export.export_target.why_no_kernels", lambda _: "")
    bundle, target = Bundle.open(bundle_of("mamba")), get_target("h100")
    (note,) = compile_kernels(bundle, target, "auto", SILENT)
    assert "no kernel for this width" in note
    assert compile_kernels(bundle, target, "native", SILENT) == ()
    with pytest.raises(SsmExportError, match="no kernel for this width"):
        compile_kernels(bundle, target, "plugin", SILENT)


@pytest.mark.parametrize(
    ("share", "precision", "advice"),
    [
        (0.75, "fp32", r"--precision fp16 \(predicted "),
        (0.75, "fp16", r"--recipe w8a16 --target tiny-board \(predicted "),
        (0.40, "fp16", r"--recipe w4a16 --target tiny-board \(predicted "),
        (0.01, "fp16", "take a device with more memory"),
    ],
)
def test_a_model_that_cannot_fit_is_refused_with_what_would(
    tiny_checkpoint, tmp_path, board, share, precision, advice
):
    """``share`` of the weights' bytes are free; a small state lies beside them."""
    checkpoint = tiny_checkpoint("mamba", hidden_size=256, num_hidden_layers=8, state_size=4)
    plan = dry(checkpoint, tmp_path, precision=precision).plan
    free = share * plan["weights_bytes"] + plan["state_bytes_per_row"]
    with pytest.raises(SsmExportError, match=advice) as caught:
        dry(checkpoint, tmp_path, precision=precision, target=board(free))
    assert caught.value.code == errors.TOO_LITTLE_MEMORY
    assert caught.value.what.startswith("predicted: ")
    assert "weights and states alone are" in caught.value.why
    said = re.search(r"\(predicted ([\d.]+) (MB|kB)", caught.value.fix)
    if said:  # what is offered has room, by its own figure
        assert float(said[1]) * {"MB": 1e6, "kB": 1e3}[said[2]] < free
    assert not (tmp_path / "bundle").exists()


def test_a_doubtful_case_is_a_note(tiny_checkpoint, tmp_path, board):
    plan = dry(tiny_checkpoint("mamba"), tmp_path, precision="fp16").plan
    free = 1.5 * plan["weights_bytes"] + 2 * plan["state_bytes_per_row"]
    report = dry(tiny_checkpoint("mamba"), tmp_path, target=board(free))
    assert report.prediction.fits is None
    assert any("building an engine may need" in note for note in report.prediction.notes)


def test_published_sizes_on_the_smallest_board():
    """2.7e9 weights in fp32 do not fit 8 GB, in fp16 they do, and its engine is not built there."""
    shape = Needs(4 * 27 * 10**8, 4 * 27 * 10**8, 172 * 10**6, 257 * 10**7, 129 * 10**6,
                  5120, 50288, "fp32")  # fmt: skip
    nano = get_target("jetson-orin-nano")
    assert predict_needs(shape, nano).fits is False
    half = dataclasses.replace(shape, weights_bytes=2 * 27 * 10**8, precision="fp16")
    found = predict_needs(half, nano)
    assert found.fits is None
    assert "4 times the weights" in found.notes[0]
