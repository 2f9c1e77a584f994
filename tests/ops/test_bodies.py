"""Every body of every operator against its float64 sequential reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_call import (
    FULL,
    assert_correct,
    assert_within,
    make_call,
    proto,
    rounded,
    run,
    session,
)
from onnx.reference import ReferenceEvaluator

from ssm_export.lowering import lower
from ssm_export.lowering.widen import widen
from ssm_export.ops import OpSpec, all_ops

OPS = list(all_ops().values())
SCANS = [spec for spec in OPS if "dt_softplus" in spec.attributes]
LENGTHS = [1, 2, 63, 64, 65, 1000]
GEOMETRIES: dict[str, list[dict[str, int]]] = {
    "CausalConv1d": [{"K": 2}, {"K": 3, "D": 7}],
    "SelectiveScan": [{"N": 16, "D": 40}, {"N": 1, "D": 3}],
    "SsdScan": [
        {"H": 4, "P": 80, "G": 2, "N": 96},
        {"H": 3, "P": 5, "G": 3, "N": 7},
        {"H": 6, "P": 16, "G": 1, "N": 8},
    ],
}
by_name = pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)


def _feeds(spec: OpSpec, types: dict[str, str] = FULL, **options: Any) -> dict[str, np.ndarray]:
    """Inputs; ``omit`` and ``ragged`` are the generator's, other options are sizes."""
    omit, ragged = options.pop("omit", ()), options.pop("ragged", False)
    rng = np.random.default_rng(17)
    return rounded(spec, spec.make_inputs(rng, {**spec.sizes, **options}, omit, ragged), types)


def _check(
    spec: OpSpec, feeds: dict[str, np.ndarray], form: str = "prefill", **attributes: Any
) -> dict[str, np.ndarray]:
    results = run(make_call(spec, feeds, form, **attributes), spec, feeds)
    assert_correct(spec, results, feeds, attributes)
    return results


@by_name
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("time", LENGTHS)
def test_chunked_body_at_every_length(spec: OpSpec, time: int, batch: int) -> None:
    _check(spec, _feeds(spec, T=time, B=batch))


@by_name
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("ragged", [False, True])
def test_step_body(spec: OpSpec, batch: int, ragged: bool) -> None:
    feeds = _feeds(spec, T=1, B=batch, ragged=ragged)
    stepped = _check(spec, feeds, "step")
    chunked = _check(spec, feeds)
    for name, value in stepped.items():
        np.testing.assert_allclose(value, chunked[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [(spec, sizes) for spec in OPS for sizes in GEOMETRIES.get(spec.name, [])],
    ids=lambda value: value.name if isinstance(value, OpSpec) else str(value),
)
def test_geometries(spec: OpSpec, sizes: dict[str, int]) -> None:
    _check(spec, _feeds(spec, T=70, **sizes))
    _check(spec, _feeds(spec, T=1, **sizes), "step")


@pytest.mark.parametrize(
    ("spec", "omit"),
    [
        (spec, omit)
        for spec in OPS
        for optional in [[p.name for p in spec.inputs if p.optional and p.type != "int32"]]
        for omit in [*([name] for name in optional), optional]
    ],
    ids=lambda value: value.name if isinstance(value, OpSpec) else "-".join(value),
)
def test_missing_optional_inputs(spec: OpSpec, omit: list[str]) -> None:
    _check(spec, _feeds(spec, T=37, omit=omit))
    _check(spec, _feeds(spec, T=37, omit=omit, ragged=True))
    _check(spec, _feeds(spec, T=1, omit=omit), "step")


def test_convolution_without_activation() -> None:
    spec = all_ops()["CausalConv1d"]
    _check(spec, _feeds(spec, T=9), activation="none")
    _check(spec, _feeds(spec, T=1), "step", activation="none")


@pytest.mark.parametrize("spec", SCANS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("form", ["step", "prefill"])
def test_time_steps_without_softplus(spec: OpSpec, form: str) -> None:
    feeds = _feeds(spec, T=1 if form == "step" else 70, omit=["dt_bias"])
    feeds["dt"] = np.log1p(np.exp(feeds["dt"]))
    _check(spec, feeds, form, dt_softplus=0)


@pytest.mark.parametrize("form", ["step", "prefill"])
@pytest.mark.parametrize("softplus", [0, 1])
@pytest.mark.parametrize("limits", [(0.01, 0.1), (0.0, 0.05), (0.02, float("inf"))])
def test_time_steps_are_clamped(form: str, softplus: int, limits: tuple[float, float]) -> None:
    spec = all_ops()["SsdScan"]
    feeds = _feeds(spec, T=1 if form == "step" else 70)
    attributes = {"dt_min": limits[0], "dt_max": limits[1], "dt_softplus": softplus}
    results = _check(spec, feeds, form, **attributes)
    free = spec.reference(feeds, spec.attributes)
    assert np.abs(results["y"] - free["y"]).max() > 1e-3, "the limits did not bind"


@pytest.mark.parametrize("chunk_size", [16, 64, 128, 256])
def test_chunk_size_does_not_change_the_result(chunk_size: int) -> None:
    spec = all_ops()["SsdScan"]
    _check(spec, _feeds(spec, T=200), chunk_size=chunk_size)


@by_name
@pytest.mark.parametrize("form", ["step", "prefill"])
def test_poisoned_padding(spec: OpSpec, form: str) -> None:
    feeds = _feeds(spec, T=1 if form == "step" else 70, B=4, ragged=True)
    lengths = feeds["sequence_lengths"]
    assert lengths[-1] == 0
    for port in spec.inputs:
        if "T" in port.axes and port.name in feeds:
            for row, length in enumerate(lengths):
                feeds[port.name][row, length:] = np.nan
    results = _check(spec, feeds, form)
    for row, length in enumerate(lengths):
        assert not results["y"][row, length:].any()
    np.testing.assert_array_equal(results["present"][-1], feeds["past"][-1])


@by_name
@pytest.mark.parametrize("cuts", [(1,), (37,), (63, 64), (2, 35, 99)])
def test_any_split_gives_the_same_states(spec: OpSpec, cuts: tuple[int, ...]) -> None:
    feeds = _feeds(spec, T=131, B=3)
    model = make_call(spec, feeds, "prefill")
    whole, expected = run(model, spec, feeds), spec.reference(feeds, spec.attributes)
    runner, past, pieces = session(model), feeds["past"], []
    timed = [port.name for port in spec.inputs if "T" in port.axes and port.name in feeds]
    for start, end in zip((0, *cuts), (*cuts, 131), strict=True):
        piece = {**feeds, "past": past, **{name: feeds[name][:, start:end] for name in timed}}
        y, past = runner.run(None, piece)
        pieces.append(y)
    assert_within(np.concatenate(pieces, 1), expected["y"], spec.tolerances["fp32"])
    difference = np.linalg.norm(past - whole["present"].astype(np.float64))
    assert difference <= 5e-6 * np.linalg.norm(whole["present"])


@by_name
@pytest.mark.parametrize("form", ["step", "prefill"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("types", [("float16", "float32"), ("float16", "float16")])
def test_half_precision(spec: OpSpec, form: str, ragged: bool, types: tuple[str, str]) -> None:
    kinds = dict(zip("TS", types, strict=True))
    feeds = _feeds(spec, kinds, T=1 if form == "step" else 131, B=3, ragged=ragged)
    results = run(make_call(spec, feeds, form), spec, feeds)
    assert {name: value.dtype for name, value in results.items()} == {
        port.name: np.dtype(kinds[port.type]) for port in spec.outputs
    }
    assert_correct(spec, results, feeds, types=kinds)


@by_name
@pytest.mark.parametrize("form", ["step", "prefill"])
@pytest.mark.parametrize("ragged", [False, True])
def test_bfloat16(spec: OpSpec, form: str, ragged: bool) -> None:
    kinds = {"T": "bfloat16", "S": "float32"}
    feeds = _feeds(spec, kinds, T=1 if form == "step" else 131, B=3, ragged=ragged)
    model = widen(make_call(spec, feeds, form))
    wide = {name: _wide(value) for name, value in feeds.items()}
    assert_correct(spec, run(model, spec, wide), feeds, types=kinds)


def _wide(value: np.ndarray) -> np.ndarray:
    return value if value.dtype in (np.int32, np.float32) else value.astype(np.float32)


@by_name
@pytest.mark.parametrize("form", ["step", "prefill"])
def test_onnx_reference_evaluator_agrees(spec: OpSpec, form: str) -> None:
    feeds = _feeds(spec, T=1 if form == "step" else 5, B=2, ragged=True)
    results = ReferenceEvaluator(proto(make_call(spec, feeds, form))).run(None, feeds)
    names = [port.name for port in spec.outputs]
    assert_correct(spec, dict(zip(names, results, strict=True)), feeds)


def _scans(model: ir.Model) -> list[ir.Node]:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [node for node in nodes if node.op_type in ("Scan", "Loop")]


@by_name
def test_step_bodies_have_no_loop(spec: OpSpec) -> None:
    model = lower(make_call(spec, _feeds(spec, T=1), "step"), "native").model
    assert not _scans(model)


@pytest.mark.parametrize("spec", SCANS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("time", [130, 1000])
def test_no_loop_over_tokens(spec: OpSpec, time: int) -> None:
    """The one loop takes at most a step for every 32 tokens, counted where it is run."""
    feeds = _feeds(spec, T=time)
    model = lower(make_call(spec, feeds, "prefill"), "native").model
    (scan,) = _scans(model)
    sequence = scan.inputs[-1]
    assert sequence is not None
    model.graph.outputs.append(sequence)
    sequence.type, sequence.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * 5)
    *_, slices = session(model).run(None, feeds)
    assert len(slices) <= -(-time // 32)


@pytest.mark.parametrize("spec", SCANS, ids=lambda spec: spec.name)
def test_states_of_all_tokens_are_never_in_memory(spec: OpSpec, tmp_path: Path) -> None:
    """No value that ONNX Runtime makes holds a state for every token."""
    time = 512
    feeds = _feeds(spec, T=time, B=1)
    model = make_call(spec, feeds, "prefill")
    runner = session(model, enable_profiling=True, profile_file_prefix=str(tmp_path / "profile"))
    runner.run(None, feeds)
    events = json.loads(Path(runner.end_profiling()).read_text())
    sizes = [
        int(np.prod(shape))
        for event in events
        for entry in event.get("args", {}).get("output_type_shape", [])
        for shape in entry.values()
    ]
    assert len(sizes) > 20
    assert max(sizes) <= time * feeds["past"][0].size // 4


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    spec=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    time=st.integers(1, 80),
    each=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.integers(3, 9),
    states=st.integers(3, 9),
    taps=st.integers(2, 5),
    ragged=st.booleans(),
    omit=st.sets(st.sampled_from(["bias", "D", "z", "dt_bias"])),
)
def test_any_shape(
    spec: OpSpec, batch: int, time: int, each: int, groups: int, width: int, states: int,
    taps: int, ragged: bool, omit: set[str],
) -> None:  # fmt: skip
    """Widths start at 3: the mean-square error of one or two values measures how they cancel."""
    sizes = {"B": batch, "T": time, "H": each * groups, "G": groups, "K": taps}
    sizes |= {"P": width, "D": width, "N": states}
    _check(spec, _feeds(spec, omit=omit, ragged=ragged, **sizes))
