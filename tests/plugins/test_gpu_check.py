"""The GPU check where there is no GPU: its pieces, its correctness part interpreted, its rows."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from kernel_calls import DEVICE, H100

from ssm_export.ops import Tolerance, all_ops
from ssm_export_plugins.gpu_check import (
    __main__ as command,
)
from ssm_export_plugins.gpu_check import (
    baselines,
    correctness,
    machine,
    measuring,
    others,
    report,
    rows,
    timing,
)
from ssm_export_plugins.gpu_check.correctness import Case, Variant
from ssm_export_plugins.gpu_check.measuring import Measured
from ssm_export_plugins.gpu_check.rows import Goal, Row

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results" / "kernels.json"
ABSENT = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "ml_dtypes", "rich", "click", "yaml")
BLOCKED = f"""
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {(*ABSENT, "pytest", "mamba_ssm")!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocker())
"""
IMPORTS_ALL = """
sys.path.insert(0, sys.argv[1])
import importlib, pkgutil
from ssm_export.resources import load_plugins
load_plugins()
from ssm_export.ops import all_ops
from ssm_export_plugins import gpu_check, kernels, launch, standard
all_ops(), standard.names()
for package in (kernels, gpu_check):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(package.__name__ + "." + module.name)
"""
FP16 = {"T": "float16", "S": "float32"}
SMALL = {
    "CausalConv1d": {"B": 2, "T": 5, "D": 12, "K": 4},
    "SelectiveScan": {"B": 1, "T": 70, "D": 6, "N": 5},
    "SsdScan": {"B": 2, "T": 131, "H": 4, "P": 3, "G": 2, "N": 5},
}
by_op = pytest.mark.parametrize("op", sorted(SMALL))


def run_child(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", script, *arguments]
    return subprocess.run(line, cwd="/", capture_output=True, text=True, check=False, timeout=300)


def test_operators_kernels_and_the_check_import_without_the_onnx_packages():
    done = run_child(BLOCKED + IMPORTS_ALL, str(ROOT))
    assert done.returncode == 0, done.stderr


def test_it_runs_from_a_source_tree_with_numpy_torch_and_triton_alone(tmp_path):
    script = BLOCKED + "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    options = ["--interpret", "--quick", "--op", "CausalConv1d", "--json", str(tmp_path / "o.json")]
    done = run_child(script, str(ROOT / "plugins" / "gpu_check"), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((tmp_path / "o.json").read_text())["correctness"]
    assert found["op"] == "CausalConv1d" and found["red"] == []
    # Three types, one variant: at lengths 1 and 5 whole and ragged, and a step; fresh and in place.
    assert found["runs"] >= 3 * (2 * 2 + 1) * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert command.main([]) == 3
    assert "no GPU at hand" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [[], ["--interpret"], ["--rows-only"], ["--quick"]])
def test_an_unknown_operator_is_refused(capsys, mode):
    assert command.main([*mode, "--op", "Nothing"]) == 2
    assert "CausalConv1d" in capsys.readouterr().err


def test_the_rows_alone_are_printed_with_their_goals(capsys):
    assert command.main(["--rows-only"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    for line, row in zip(lines, report.unmeasured(rows.ROWS), strict=True):
        found = [float(word) for word in line.split() if word.replace(".", "").isdigit()]
        assert line.startswith(row["name"]) and (row["must"] is None or row["must"] in found)


def test_nothing_is_timed_when_anything_is_red(capsys, monkeypatch, tmp_path):
    red = correctness.Finding("CausalConv1d", 3, ("case 7: 'y' is wrong",), ())
    monkeypatch.setattr(correctness, "check_operator", lambda *_: red)
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    monkeypatch.setattr(machine, "chip", lambda: H100)
    monkeypatch.setattr(machine, "facts", lambda: {**FACTS})
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("timed"))
    assert command.main(["--op", "CausalConv1d", "--json", str(tmp_path / "o.json")]) == 1
    assert "case 7: 'y' is wrong" in capsys.readouterr().out
    assert json.loads((tmp_path / "o.json").read_text())["rows"] == []


FACTS = {"device": "GPU X", "nvidia_smi": {"clocks.sm": "1 MHz"}, "torch": "2", "triton": "3",
         "date": "2026-01-01"}  # fmt: skip


@pytest.mark.parametrize(
    "op", ["CausalConvWithState", "ConvSsdScan", "LinearAttention", *sorted(SMALL)]
)
def test_every_operator_is_found_and_called_in_several_ways(op):
    assert op in correctness.checked_operators()
    made = list(correctness.cases(correctness.spec_of(op), correctness.FULL))
    assert {case.types["T"] for case in made} == {"float32", "float16", "bfloat16"}
    assert {case.length for case in made} == {1, 2, 63, 64, 65, 1000}
    assert {case.batch for case in made} == {1, 3}
    lengths = any(port.name == "sequence_lengths" for port in correctness.spec_of(op).inputs)
    assert any(case.ragged for case in made) == lengths
    assert any(case.step for case in made)
    if any(port.type == "S" for port in correctness.spec_of(op).inputs):
        assert {case.types["S"] for case in made} == {"float32", "float16"}


@pytest.mark.parametrize("op", ["CausalConvWithState", "LinearAttention", *sorted(SMALL)])
def test_kernels_are_right_in_the_eyes_of_the_check(op):
    spec = correctness.spec_of(op)
    variant = correctness.VARIANTS.get(op, (Variant(),))[0]
    types = {"T": "bfloat16", "S": "float16"}
    case = Case(spec, variant, types, 3 if op in SMALL else 1, 5, ragged=op in SMALL)
    found = correctness.check_case(case, H100, DEVICE, every_plan=op in SMALL)
    assert found.problems == () and found.runs >= 2


def test_a_wrong_result_is_red():
    spec = all_ops()["CausalConv1d"]

    def shifted(inputs, attributes):
        made = spec.reference(inputs, attributes)
        return {**made, "present": made["present"] + 0.1}

    case = Case(dataclasses.replace(spec, reference=shifted), Variant(), FP16, 1, 2)
    found = correctness.check_case(case, H100, DEVICE)
    assert len(found.problems) == found.runs > 0
    assert "'present' is wrong in 72 of 72 elements" in found.problems[0]


def test_a_kernel_that_raises_is_red_and_the_others_still_run(monkeypatch):
    spec = all_ops()["CausalConv1d"]
    seen = []

    def fail(case, *_):
        seen.append(case)
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(correctness, "check_case", fail)
    found = correctness.check_operator("CausalConv1d", H100, DEVICE, correctness.QUICK)
    assert len(found.problems) == len(seen) == len(list(correctness.cases(spec, correctness.QUICK)))
    assert "RuntimeError: illegal memory access" in found.problems[0]


def test_a_plan_too_large_for_the_chip_is_a_note_unless_it_is_the_only_one(monkeypatch):
    class OutOfResources(Exception):  # noqa: N818  (Triton's name)
        pass

    run, calls = correctness._run, []

    def first_fails(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OutOfResources("shared memory")
        return run(*arguments)

    monkeypatch.setattr(correctness, "_run", first_fails)
    case = Case(all_ops()["CausalConv1d"], Variant(), FP16, 1, 2)
    found = correctness.check_case(case, H100, DEVICE)
    assert found.problems == () and "shared memory" in found.notes[0] and found.runs
    calls.clear()
    found = correctness.check_case(case, H100, DEVICE, every_plan=False)
    assert "none of" in found.problems[0]


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        ([1.0, 2.0, 4.0], None),
        ([1.0, 2.0, 4.02], None),
        ([1.0, 2.0], "shape"),
        ([1.0, math.nan, 4.0], "1 elements that are not finite"),
        ([1.0, math.inf, 4.0], "1 elements that are not finite"),
        ([1.0, 2.05, 4.0], "wrong in 1 of 3 elements; at (1,) it is 2.05 instead of 2"),
        ([1.01, 2.01, 4.02], "NMSE"),
    ],
)
def test_an_output_is_held_against_every_gate(actual, words):
    bound = Tolerance(relative=0.0, absolute=0.021, nmse=2e-5)
    found = correctness.difference(np.array(actual), np.array([1.0, 2.0, 4.0]), bound)
    assert found is None if words is None else words in found


def test_inputs_are_rounded_and_padding_is_poisoned():
    types = {"T": "bfloat16", "S": "float32"}
    spec = all_ops()["SelectiveScan"]
    case = Case(spec, Variant(), types, 3, 9, ragged=True)
    tensors, exact = correctness.make_inputs(case, "cpu")
    seed = np.random.default_rng(9 * 8 + 3)
    drawn = spec.make_inputs(seed, {**spec.sizes, "B": 3, "T": 9}, (), True)
    wanted = drawn["u"].astype(ml_dtypes.bfloat16).astype(np.float64)
    assert np.array_equal(exact["u"], wanted)
    assert np.array_equal(exact["A"], drawn["A"].astype(np.float32).astype(np.float64))
    for row, length in enumerate(drawn["sequence_lengths"]):
        for name in ("u", "dt", "B", "C", "z"):
            assert torch.isnan(tensors[name][row, length:]).all()
            assert torch.isfinite(tensors[name][row, :length]).all()
    assert torch.isfinite(tensors["past"]).all()


def test_an_output_gets_the_coarser_tolerance_of_its_types():
    spec = all_ops()["SsdScan"]
    bounds = spec.tolerances
    state16 = {"T": "float32", "S": "float16"}
    assert correctness.tolerance(spec, state16, "T") == bounds["fp32"]
    assert correctness.tolerance(spec, state16, "S") == bounds["fp16"]
    assert correctness.tolerance(spec, {"T": "bfloat16", "S": "float32"}, "S") == bounds["bf16"]


@by_op
@pytest.mark.parametrize("form", [baselines.sequential, baselines.chunked])
def test_plain_torch_scans_agree_with_the_reference(op, form):
    spec = all_ops()[op]
    exact = spec.make_inputs(np.random.default_rng(0), SMALL[op])
    y, present = form(op, {n: torch.from_numpy(v) for n, v in exact.items()}, torch.float64)
    expected = spec.reference(exact, spec.attributes)
    np.testing.assert_allclose(y.numpy(), expected["y"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(present.numpy(), expected["present"], rtol=1e-9, atol=1e-9)


# Published floors of an H100 at 3.0 TB/s and 132 multiprocessors at 1.755 GHz, in µs.
H100_EXP2 = 16 * 132 * 1.755e9
STEPS = [
    ("SelectiveScan", {"D": 1536, "N": 16}, {1: (0.11, 0.07), 8: (0.59, 0.33), 64: (4.5, 2.4)}),
    ("SelectiveScan", {"D": 5120, "N": 16}, {1: (0.36, 0.25), 8: (1.98, 1.11), 64: (15.0, 8.0)}),
    ("SsdScan", {"H": 24, "P": 64, "N": 128, "G": 1},
     {1: (0.53, 0.27), 8: (4.2, 2.1), 64: (33.8, 17.0)}),
    ("SsdScan", {"H": 80, "P": 64, "N": 128, "G": 1},
     {1: (1.76, 0.88), 8: (14.1, 7.1), 64: (112.5, 56.6)}),
]  # fmt: skip
PROMPTS = [
    ("SelectiveScan", {"D": 1536, "N": 16}, 16.1, "exp2"),
    ("SelectiveScan", {"D": 4096, "N": 16}, 43.0, "exp2"),
    ("SelectiveScan", {"D": 5120, "N": 16}, 53.8, "exp2"),
    ("SsdScan", {"H": 24, "P": 64, "N": 128, "G": 1}, 4.8, "memory"),
    ("SsdScan", {"H": 64, "P": 64, "N": 128, "G": 1}, 12.3, "memory"),
    ("SsdScan", {"H": 80, "P": 64, "N": 128, "G": 1}, 15.3, "memory"),
]


@pytest.mark.parametrize(("op", "sizes", "floors"), STEPS)
def test_floors_of_steps_are_the_published_ones(op, sizes, floors):
    for batch, both in floors.items():
        for state, wanted in zip(("float32", "float16"), both, strict=True):
            row = Row("", op, {**sizes, "B": batch, "T": 1}, state)
            found, bound = row.floor(3.0e12, H100_EXP2)
            digits = 2 if wanted < 2 else 1
            assert abs(found - wanted) <= 1.01 * 10**-digits and bound == "memory"


@pytest.mark.parametrize(("op", "sizes", "wanted", "bound"), PROMPTS)
def test_floors_of_prompts_are_the_published_ones(op, sizes, wanted, bound):
    found, by = Row("", op, {**sizes, "B": 1, "T": 2048}).floor(3.0e12, H100_EXP2)
    assert round(found, 1) == pytest.approx(wanted, abs=0.101) and by == bound


def test_every_line_of_the_goals_has_its_rows():
    lines = report.unmeasured(rows.ROWS)
    found = {(line["name"], line["goal"]): (line["must"], line["stretch"]) for line in lines}
    assert len(found) == len(lines)
    steps = [row for row in rows.ROWS if row.step and row.sizes["B"] == 1]
    assert {row.op for row in steps} == set(SMALL)
    assert all(found[row.name, "µs"] == (4.0, 2.5) for row in steps)
    assert found["Mamba-2 step, 2.7b, b=64", "µs"] == (150.0, 125.0)
    assert found["Mamba-2 step, 2.7b, b=64, fp16 state", "µs"] == (75.0, 63.0)
    assert found["Mamba-1 step, 2.8b, b=64", "µs"] == (20.0, 17.0)
    for length, wanted in ((2048, (70.0, 40.0)), (4096, (125.0, 70.0)), (16384, (430.0, 250.0))):
        name = f"SSD prefill, 2.7b, b=1, L={length}"
        assert found[name, "µs"] == wanted and found[name, "x mamba-ssm"] == (1.5, 2.5)
    assert found["SSD prefill, H=128 P=80 G=8, b=1, L=2048", "x width 64"] == (1.25, 1.0)
    assert found["Mamba-1 scan, 2.8b, b=1, L=2048", "µs"] == (110.0, 75.0)
    assert found["Mamba-1 scan, 2.8b, b=1, L=2048", "x mamba-ssm"] == (1.0, None)
    assert [v for (_, goal), v in found.items() if goal == "% copy"] == [(80.0, None)] * 3
    assert {row.against for row in rows.ROWS} - {None} <= {row.name for row in rows.ROWS}
    assert all(line["time_us"] is None and line["note"] == "no GPU at hand" for line in lines)


def test_committed_results_have_the_rows_of_the_check():
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    keys = ("name", "op", "sizes", "state", "goal", "must", "stretch")
    wanted = report.unmeasured(rows.ROWS)
    assert [[line[k] for k in keys] for line in document["rows"]] == [
        [line[k] for k in keys] for line in wanted
    ]
    assert all(line.keys() == wanted[0].keys() for line in document["rows"])
    if document["machine"]["device"] is None:
        assert document["rows"] == wanted


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (Goal("time", 4.0, 2.5), 2.5, "stretch"),
        (Goal("time", 4.0, 2.5), 4.0, "must"),
        (Goal("time", 4.0, 2.5), 4.1, "missed"),
        (Goal("mamba_ssm", 1.5, 2.5), 2.6, "stretch"),
        (Goal("mamba_ssm", 1.5, 2.5), 1.4, "missed"),
        (Goal("copy", 80.0), 99.0, "must"),
        (Goal("width", 1.25, 1.0), 1.1, "must"),
        (Goal("time", 4.0), None, None),
    ],
)
def test_verdicts(goal, value, verdict):
    assert goal.verdict(value) == verdict


def test_figures_are_judged_and_printed():
    narrow = Row("narrow", "SsdScan", {"B": 1, "T": 10, "H": 2, "P": 64, "G": 1, "N": 8})
    wide = dataclasses.replace(
        narrow, name="wide", sizes={**narrow.sizes, "P": 80}, against="narrow",
        goals=(Goal("width", 1.25, 1.0), Goal("mamba_ssm", 1.5, 2.5), Goal("copy", 80.0)),
    )  # fmt: skip
    figures = {"time_us": 10.0, "copy_share_percent": 81.0, "mamba_ssm_us": None}
    slower = {**figures, "time_us": 15.0, "mamba_ssm_us": 30.0}
    lines = report.judged([Measured(narrow, figures, ("mamba-ssm: not installed",)),
                           Measured(wide, slower)])  # fmt: skip
    assert [line["value"] for line in lines] == [None, pytest.approx(1.2), 2.0, 81.0]
    assert [line["verdict"] for line in lines] == [None, "must", "must", "must"]
    text = report.table(lines).splitlines()
    assert len({len(line) for line in text[2:5]}) == 1
    assert text[-1] == "narrow: mamba-ssm: not installed"
    assert text[2].split()[-4:] == ["1.25", "1.00", "1.20", "must"]
    assert text[1].split()[:2] == ["narrow", "float32"] and text[1].split()[-1] == "-"


def test_a_graph_rotates_through_more_than_the_cache():
    assert timing.sets_needed(1 << 20, 50 << 20) == 150
    assert timing.sets_needed(1 << 10, 50 << 20) == timing.MOST_CALLS
    assert timing.sets_needed(1 << 30, 50 << 20) == timing.FEWEST_CALLS


@by_op
def test_a_row_is_compared_with_the_truth_before_it_is_timed(op):
    row = Row("small", op, {**SMALL[op], "T": 3})
    inputs = measuring.row_inputs(row, DEVICE)
    y, present = baselines.sequential(op, inputs, torch.float64)
    (plan, *_) = correctness.kernels.plans(
        all_ops()[op], correctness.make_call(measuring.case_of(row), inputs), H100
    )
    assert measuring.problem_of(row, plan, inputs, {"y": y, "present": present}) == ""
    wrong = {"y": y + 1.0, "present": present}
    assert "'y' is wrong" in measuring.problem_of(row, plan, inputs, wrong)
    assert measuring.relative_difference(y + math.nan, y) == math.inf


@by_op
@pytest.mark.parametrize("length", [1, 3])
def test_figures_come_together_from_times(op, length, monkeypatch):
    graphs = []

    def pretend(calls):
        for call in calls:
            call()
        graphs.append(len(calls))
        return 8.0

    monkeypatch.setattr(timing, "copy_bandwidth", lambda: 2e9)
    monkeypatch.setattr(timing, "time_graph", pretend)
    monkeypatch.setattr(timing, "time_eager", lambda call, repetitions: call() is None or 80.0)
    monkeypatch.setattr(machine, "l2_bytes", lambda: 0)
    monkeypatch.setattr(machine, "sm_clock_hz", lambda: 1e9)
    for name in ("mamba_ssm", "causal_conv1d", "selective_scan_cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    row = Row("small", op, {**SMALL[op], "T": length}, goals=(Goal("time", 10.0, 5.0),))
    (found,) = measuring.measure([row], H100, None, DEVICE)
    assert found.problem is None and set(graphs) == {timing.FEWEST_CALLS}
    figures = found.figures
    inputs = measuring.row_inputs(row, "cpu")
    spec = all_ops()[op]
    size = sum(value.nbytes for value in inputs.values()) + inputs["past"].nbytes
    size += 2 * math.prod(inputs[spec.inputs[0].name].shape)  # y, in 16 bit as the first input
    assert figures["bytes"] == size
    assert figures["gb_per_s"] == pytest.approx(size / 8e-6 / 1e9)
    assert figures["copy_share_percent"] == pytest.approx(100 * size / 8e-6 / 2e9)
    assert figures["torch_loop_us"] == figures["torch_chunked_us"] == 80.0
    assert figures["mamba_ssm_us"] is None and "not installed" in found.notes[-1]
    (line,) = report.judged([found])
    assert line["verdict"] == "must" and line.keys() == report.unmeasured([row])[0].keys()
    assert all(line[name] is not None for name in figures if not name.startswith("mamba_ssm"))


def test_a_row_with_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(timing, "copy_bandwidth", lambda: 2e9)
    monkeypatch.setattr(timing, "time_graph", lambda calls: pytest.fail("timed"))
    right = baselines.sequential

    def shifted(*arguments):
        y, present = right(*arguments)
        return y, present + 1.0

    monkeypatch.setattr(baselines, "sequential", shifted)
    row = Row("small", "CausalConv1d", {**SMALL["CausalConv1d"], "T": 3})
    (found,) = measuring.measure([row], H100, None, DEVICE)
    assert "'present' is wrong" in found.problem and found.figures == {}


def test_a_missing_mamba_ssm_is_an_import_error(monkeypatch):
    for name in ("mamba_ssm", "causal_conv1d", "selective_scan_cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    for op, sizes in SMALL.items():
        row = Row("small", op, {**sizes, "T": 1})
        with pytest.raises(ImportError):
            others.mamba_ssm_call(op, measuring.row_inputs(row, "cpu"), step=True)


def test_a_source_tree_needs_no_einops(tmp_path, monkeypatch):
    (tmp_path / "mamba_ssm" / "ops").mkdir(parents=True)
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "mamba_ssm" / "ops" / "probe.py").write_text("import einops\nVALUE = 7\n")
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.probe", "einops"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    find = importlib.util.find_spec
    hide = lambda name, *rest: None if name == "einops" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    others.use_source_tree(tmp_path)
    assert importlib.import_module("mamba_ssm.ops.probe").VALUE == 7
    x = torch.arange(24.0).view(2, 3, 4)
    flat = sys.modules["einops"].rearrange(x, "... p n -> ... (p n)")
    assert torch.equal(flat, x.view(2, 12))
    assert torch.equal(sys.modules["einops"].rearrange(flat, "... (p n) -> ... p n", n=4), x)
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.probe", "einops"):
        sys.modules.pop(name, None)


def state_update(state, x, dt, A, B, C, D, z=None, dt_bias=None, dt_softplus=False):
    """What mamba-ssm documents of selective_state_update, written down in torch for the test."""
    if state.dim() == 3:
        x, dt, A, B, C, D, dt_bias = (
            v.unsqueeze(0 if v.dim() < 2 or v is A else 1) for v in (x, dt, A, B, C, D, dt_bias)
        )
        state = state.unsqueeze(1)
    B, C = (v.repeat_interleave(state.shape[1] // v.shape[1], 1).float() for v in (B, C))
    step = torch.nn.functional.softplus(dt.float() + dt_bias)
    state = torch.exp(step[..., None] * A) * state
    state = state + (step * x)[..., None] * B[:, :, None]
    y = (state * C[:, :, None]).sum(-1) + D * x
    return y.squeeze(1) * torch.nn.functional.silu(z) if z is not None else y


@pytest.mark.parametrize("op", ["SelectiveScan", "SsdScan"])
def test_the_step_of_mamba_ssm_is_given_the_same_call(op, monkeypatch):
    module = types.ModuleType("mamba_ssm.ops.triton.selective_state_update")
    module.selective_state_update = state_update
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    row = Row("small", op, {**SMALL[op], "T": 1})
    inputs = measuring.row_inputs(row, "cpu")
    call, name = others.mamba_ssm_call(op, inputs, step=True)
    y, _ = baselines.sequential(op, inputs, torch.float64)
    assert name == "selective_state_update"
    assert measuring.relative_difference(call(), y) < 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="times kernels on a GPU")
def test_a_row_is_timed_on_a_gpu():
    row = Row("small", "SelectiveScan", {**SMALL["SelectiveScan"], "T": 64, "D": 512},
              goals=(Goal("time", 1e6),))  # fmt: skip
    (found,) = measuring.measure([row], machine.chip(), None)
    assert found.problem is None
    assert 0 < found.figures["time_us"] < found.figures["torch_loop_us"]
    assert report.judged([found])[0]["verdict"] == "must"
