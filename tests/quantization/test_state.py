"""States of another type: the round trip, the graphs, and that verify holds them and only them."""

from __future__ import annotations

import importlib.util
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from families import ROOT
from hypothesis import given
from hypothesis import strategies as st
from retyped import retyped_bundle

from ssm_export import errors
from ssm_export.bundle import SSM, SSM_SCALE, Bundle
from ssm_export.engines import Recurrent, open_runner
from ssm_export.engines.runner import Arrays
from ssm_export.errors import SsmExportError
from ssm_export.exporter import ExportOptions
from ssm_export.lowering import lower_for_plugin
from ssm_export.quantization.floors import state_floors
from ssm_export.quantization.state import RoundedStates, retype_states, simulate_state
from ssm_export.verification import verify

DEMOS = ("mamba", "mamba2")
QUICK_CHECKS = ("logits", "states", "prefill equals steps", "splits", "batch rows", "ragged")


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """``demo(family)``: the trained demo model as a ragged float bundle, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        from ssm_export.exporter import export

        if family not in made:
            made[family] = tmp_path_factory.mktemp("demo") / family
            checkpoint = ROOT / "samples/train_demo" / f"{family}-bytes"
            options = ExportOptions(parity="quick", lowering="ort", ragged=True, verify=False)
            export(checkpoint, made[family], options)
        return made[family]

    return make


@pytest.fixture(scope="session")
def with_int8(demo, tmp_path_factory):
    """``with_int8(family)``: the same with int8 states, and the rounding that they cost."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("int8") / family
            bundle = retyped_bundle(demo(family), folder, "int8")
            bundle.manifest.rounding = state_floors(Bundle.open(demo(family)), "int8")
            bundle.save()
            made[family] = folder
        return made[family]

    return make


def opened(path: Path, lowering: str = "native") -> Recurrent:
    bundle = Bundle.open(path)
    return Recurrent(bundle, open_runner(bundle, "onnxruntime", lowering=lowering))


def floats(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    magnitudes = 10.0 ** rng.uniform(-6, 3, (*shape[:-1], 1))
    return (rng.normal(size=shape) * magnitudes).astype(np.float32)


@given(
    rows=st.integers(1, 4),
    blocks=st.integers(1, 4),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_int8_state_is_off_by_less_than_a_step_of_its_block(rows, blocks, width, seed):
    values = floats(np.random.default_rng(seed), (rows, blocks * width))
    kept = simulate_state(values, "int8", width)
    cut = values.reshape(rows, blocks, width).astype(np.float64)
    step = np.abs(cut).max(axis=-1, keepdims=True) / 127
    off = np.abs(kept.reshape(cut.shape) - cut)
    assert (off <= step * (1 + 1e-4)).all()
    largest = np.abs(cut) == 127 * step
    assert (off[largest] <= 1e-6 * np.abs(cut[largest])).all()


def test_rounding_has_no_bias():
    """A change far below one step is kept on average, which rounding to the nearest loses."""
    values = np.random.default_rng(0).uniform(-1, 1, (1, 200_000)).astype(np.float32)
    values[0, 0] = 1.0
    for shift in (0.0, 0.3 / 127):
        moved = np.clip(values - np.float32(shift), -1, 1)
        error = simulate_state(moved, "int8").astype(np.float64) - moved
        # The standard deviation of one error is 1/127/√6, that of the mean of n is 1/√n of it.
        assert abs(error.mean()) < 4 / 127 / np.sqrt(6 * values.size)
        assert np.sqrt((error**2).mean()) == pytest.approx(1 / 127 / np.sqrt(6), rel=0.02)


def test_zeros_are_exact_and_fp16_is_numpys():
    values = floats(np.random.default_rng(1), (3, 5, 16))
    values[1] = 0
    assert not simulate_state(values, "int8")[1].any()
    assert not simulate_state(values, "fp16")[1].any()
    np.testing.assert_array_equal(simulate_state(values, "fp16"), np.float32(np.float16(values)))
    assert np.isinf(simulate_state(np.full((1, 2), 1e6), "fp16")).all()


@pytest.mark.parametrize("dtype", ["bf16", "int4"])
def test_types_that_no_state_has_are_refused(dtype, demo):
    model = ir.load(Bundle.open(demo("mamba")).graph_path("step", "canonical"))
    states = Bundle.open(demo("mamba")).manifest.states
    with pytest.raises(SsmExportError) as refused:
        retype_states(model, states, dtype)
    assert refused.value.code is errors.BAD_OPTION
    if dtype == "bf16":
        with pytest.raises(SsmExportError) as exported:
            ExportOptions(state_dtype="bf16").check()
        assert str(refused.value) == str(exported.value)


def test_a_block_that_does_not_fit_and_a_second_int8_are_refused(demo, with_int8):
    bundle = Bundle.open(demo("mamba2"))
    model = ir.load(bundle.graph_path("step", "canonical"))
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(SsmExportError, match="do not divide") as refused:
        retype_states(model, bundle.manifest.states, "int8", block=7)
    assert refused.value.code is errors.BAD_OPTION
    assert ir.to_proto(model).SerializeToString() == before
    again = Bundle.open(with_int8("mamba2"))
    model = ir.load(again.graph_path("step", "canonical"))
    with pytest.raises(SsmExportError) as refused:
        retype_states(model, again.manifest.states, "int8")
    assert refused.value.code is errors.ALREADY_QUANTIZED


@pytest.mark.parametrize("family", DEMOS)
def test_codes_and_scales_are_ports_in_the_order_of_the_manifest(family, with_int8):
    bundle = Bundle.open(with_int8(family))
    states = bundle.manifest.states
    by_name = {spec.name_in: spec for spec in states}
    for form in ("step", "prefill"):
        for lowering in ("canonical", "native", "ort"):
            path = bundle.graph_path(form, lowering)
            graph = onnx.load(str(path), load_external_data=False).graph
            taken = [value.name for value in graph.input if value.name in by_name]
            assert taken == [spec.name_in for spec in states]
            assert [v.name for v in graph.output] == ["logits", *(s.name_out for s in states)]
            for value in graph.input:
                if value.name in by_name and by_name[value.name].kind == SSM:
                    assert value.type.tensor_type.elem_type == onnx.TensorProto.INT8
    for codes, scale in pairwise(states):
        if codes.kind == SSM:
            assert (scale.kind, scale.layer, scale.dtype) == (SSM_SCALE, codes.layer, "float32")
            assert scale.shape == (*codes.shape[:-1], 1)
            assert scale.layout == codes.layout.rpartition(",")[0] + ",1"
    # A byte for each entry and four for each row, where there were four for each entry.
    spec = next(spec for spec in states if spec.kind == SSM)
    entries = spec.bytes_per_row
    scales = next(spec for spec in states if spec.kind == SSM_SCALE).bytes_per_row
    assert scales == 4 * entries // spec.shape[-1]


@pytest.mark.parametrize("lowering", ["canonical", "native", "ort"])
@pytest.mark.parametrize("family", DEMOS)
def test_graphs_round_as_numpy_does(family, lowering, demo, with_int8):
    """One call from one state: what the float graph gives, rounded in numpy, bar a few codes."""
    exact, held = opened(demo(family), "ort"), opened(with_int8(family), lowering)
    ids = np.random.default_rng(0).integers(0, 256, (3, 40))
    _, past = held.prefill(ids)
    truth = held.real_states(past)
    for form, taken in (("prefill", ids[:, :9]), ("step", ids[:, :1])):
        want_logits, want = exact.run(form, taken, truth)
        logits, got = held.run(form, taken, past)
        np.testing.assert_allclose(logits, want_logits, atol=2e-4)
        for spec in held.states:
            if spec.kind != SSM:
                continue
            codes = got[spec.name_in].astype(np.float64)
            scale = np.abs(want[spec.name_in]).max(axis=-1, keepdims=True) / 127
            stored = got[spec.name_in.replace("ssm", "ssm_scale")]
            np.testing.assert_allclose(stored, scale, rtol=1e-4)
            rounded = simulate_state(want[spec.name_in], "int8").astype(np.float64) / scale
            assert np.abs(codes - rounded).max() < 1.01
            assert (np.abs(codes - rounded) > 0.5).mean() < 0.02


def test_a_row_without_tokens_keeps_codes_and_scales_to_the_bit(with_int8):
    for family in DEMOS:
        model = opened(with_int8(family))
        ids = np.random.default_rng(2).integers(0, 256, (3, 8))
        _, past = model.prefill(ids)
        odd = {  # scales that no rounding would give, so only keeping them passes
            spec.name_in: past[spec.name_in] * np.float32(1.37)
            if spec.kind == SSM_SCALE
            else past[spec.name_in]
            for spec in model.states
        }
        for run, taken in ((model.prefill, ids), (model.step, ids[:, :1])):
            _, after = run(taken, odd, np.array([0, 1, 0]))
            for spec in model.states:
                for row in (0, 2):
                    np.testing.assert_array_equal(after[spec.name_in][row], odd[spec.name_in][row])
                assert (after[spec.name_in][1] != odd[spec.name_in][1]).any()


@pytest.mark.parametrize("family", DEMOS)
@pytest.mark.parametrize("dtype", ["fp16", "int8:16", "int8"])
def test_rounded_states_go_where_the_graph_goes(family, dtype, demo, with_int8, tmp_path):
    """A few tokens by the graph and by numpy; both stay as near to the float model."""
    kind, _, block = dtype.partition(":")
    path = with_int8(family)
    if dtype != "int8":
        path = tmp_path / "other"
        retyped_bundle(demo(family), path, kind, int(block or 0))
    exact, held = opened(demo(family), "ort"), opened(path)
    twin = RoundedStates(exact, kind, int(block or 0))
    ids = np.random.default_rng(3).integers(0, 256, (2, 24))
    errors_of: list[dict[str, float]] = []
    truth = _decode(exact, ids)
    for model in (held, twin):
        found = _decode(model, ids)
        errors_of.append({n: float(np.linalg.norm(found[n] - truth[n])) for n in truth})
    for name, error in errors_of[0].items():
        if "ssm" in name:
            assert 0.5 * errors_of[1][name] < error < 2 * errors_of[1][name]


def _decode(model: Recurrent, ids: np.ndarray) -> Arrays:
    state = model.initial_state(len(ids))
    for column in ids.T:
        _, state = model.step(column[:, None], state)
    return model.real_states(state)


@pytest.mark.parametrize("family", DEMOS)
def test_verify_passes_an_int8_state(family, with_int8):
    report = verify(with_int8(family), checks=QUICK_CHECKS, save=False)
    assert report.ok, report.failures
    assert all(check.status == "passed" for check in report.checks)


class Broken:
    """A runner that mistreats the states between calls."""

    def __init__(self, model: Recurrent, fault: str) -> None:
        self._runner, self._fault, self._states = model.runner, fault, model.states
        self.info = model.runner.info

    def run(self, form: str, feeds: Arrays) -> Arrays:
        scales = [spec for spec in self._states if spec.kind == SSM_SCALE]
        outputs = self._runner.run(form, feeds)
        if self._fault == "scale doubled":
            outputs[scales[1].name_out] = outputs[scales[1].name_out] * np.float32(2)
        elif self._fault == "scales swapped":
            one, other = scales[1].name_out, scales[2].name_out
            outputs[one], outputs[other] = outputs[other], outputs[one]
        elif self._fault == "scales in another order":
            outputs[scales[1].name_out] = np.flip(outputs[scales[1].name_out], 1)
        elif self._fault == "codes not carried":
            name = scales[1].name_out.replace("_scale", "")
            outputs[name] = np.zeros_like(outputs[name])
        return outputs

    def close(self) -> None:
        self._runner.close()


@pytest.mark.parametrize(
    "fault",
    ["scale doubled", "scales swapped", "scales in another order", "codes not carried"],
)
@pytest.mark.parametrize("family", DEMOS)
def test_verify_fails_a_broken_int8_state(family, fault, with_int8):
    model = opened(with_int8(family))
    broken = Broken(model, fault)
    checks = ("states", "prefill equals steps")
    report = verify(model.bundle, runner=broken, checks=checks, save=False)
    assert not report.ok
    assert "past_ssm.1" in report.failures[0].where


@pytest.mark.parametrize("fault", ["drops past scales", "rounds to the wrong side"])
def test_verify_fails_a_graph_that_reads_or_writes_states_wrongly(fault, with_int8, tmp_path):
    folder = tmp_path / "faulty"
    shutil.copytree(with_int8("mamba2"), folder)
    bundle = Bundle.open(folder)
    for form in ("step", "prefill"):
        path = bundle.graph_path(form, "native")
        model = ir.load(path)
        for node in model.graph:
            if fault == "drops past scales" and node.name == "past_ssm.1/real":
                node.op_type = "Add"
            if fault == "rounds to the wrong side" and node.name == "present_ssm.1/rounded":
                node.op_type = "Ceil"
        ir.save(model, path)
        bundle.manifest.graphs[form]["native"] = bundle.entry(f"onnx/{path.name}")
    bundle.save()
    report = verify(bundle, lowering="native", checks=("states", "splits"), save=False)
    assert not report.ok
    assert "past_ssm.1" in report.failures[0].where


@pytest.mark.parametrize("family", DEMOS)
def test_the_plugin_lowering_takes_int8_states(family, with_int8):
    bundle = Bundle.open(with_int8(family))
    canonical = ir.load(bundle.graph_path("prefill", "canonical"))
    made = lower_for_plugin(canonical, lambda spec, call: spec.name.encode())
    stamped = [node for node in made.model.graph if node.domain]
    layers = bundle.manifest.sizes["L"]
    scans = {"mamba": "SelectiveScan", "mamba2": "ConvSsdScan"}
    assert sum(node.op_type == scans[family] for node in stamped) == layers
    assert not made.model.functions
    assert [value.name for value in made.model.graph.inputs][2:] == [
        spec.name_in for spec in bundle.manifest.states
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)
@pytest.mark.parametrize("family", DEMOS)
def test_tensorrt_rtx_builds_int8_states(family, with_int8, tmp_path):
    from ssm_export.engines.tensorrt import build

    folder = tmp_path / "built"
    shutil.copytree(with_int8(family), folder)
    report = build(folder, "rtx-any", max_chunk=128)
    assert {entry.form for entry in report} == {"step", "prefill"}


@pytest.mark.slow
@pytest.mark.parametrize("family", DEMOS)
def test_every_check_passes_a_demo_model_with_an_int8_state(family, tmp_path):
    from ssm_export.exporter import export

    checkpoint = ROOT / "samples/train_demo" / f"{family}-bytes"
    options = ExportOptions(parity="full", lowering="ort", verify=False)
    export(checkpoint, tmp_path / "float", options)
    bundle = retyped_bundle(tmp_path / "float", tmp_path / "int8", "int8")
    bundle.manifest.rounding = state_floors(Bundle.open(tmp_path / "float"), "int8")
    bundle.save()
    report = verify(bundle)
    assert report.ok, report.failures
    assert {"drift", "greedy tokens"} <= {c.name for c in report.checks if c.status == "passed"}
