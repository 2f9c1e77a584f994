"""Sites by name, and a model run piece by piece against the same model run whole."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import run_plain, self_contained

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines import Recurrent, open_runner
from ssm_export.errors import SsmExportError
from ssm_export.quantization import stream as stream_module
from ssm_export.quantization.pieces import Pieces, with_bodies
from ssm_export.quantization.sites import find_sites, layer_of, product_sites
from ssm_export.quantization.stream import LayerStream, open_session

LAYERS = 3
PROJECTIONS = {
    "mamba": ("in_proj", "x_proj", "dt_proj", "out_proj"),
    "mamba2": ("in_proj", "out_proj"),
}
GROUPS = {"mamba": 1, "mamba2": 2}
WITHIN = {"fp32": 3e-6, "fp16": 5e-3, "bf16": 4e-2}
"""Relative L2 between the pieces, in fp32, and the whole graph in its own precision."""


@pytest.fixture
def bundle(bundle_of, family):
    return Bundle.open(bundle_of(family))


def canonical(bundle: Bundle, form: str = "prefill") -> ir.Model:
    return ir.load(bundle.graph_path(form, "canonical"))


def values_of(bundle: Bundle, rows: np.ndarray, names: list[str]) -> list[np.ndarray]:
    """Values of the whole prefill graph by name, in ONNX Runtime."""
    proto = self_contained(canonical(bundle), "prefill")
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    feeds = {"input_ids": rows}
    if bundle.manifest.ragged:
        feeds["sequence_lengths"] = np.full(len(rows), rows.shape[1], np.int32)
    for state in bundle.manifest.states:
        shape = [len(rows) if isinstance(size, str) else size for size in state.shape]
        feeds[state.name_in] = np.zeros(shape, np.float32)
    return run_plain(proto, feeds, names)


def random_rows(bundle: Bundle, rows: int, tokens: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, bundle.manifest.sizes["V"], (rows, tokens))


def test_every_projection_scan_input_and_vocabulary_is_a_site(bundle, family):
    for form in ("step", "prefill"):
        sites = find_sites(canonical(bundle, form))
        module = "backbone.layers.{}.mixer.{}"
        linear = {module.format(i, p) for i, p in product(range(LAYERS), PROJECTIONS[family])}
        tied = canonical(bundle, form).graph.initializers.get("lm_head.weight") is None
        vocabulary = {"backbone.embeddings"} | (set() if tied else {"lm_head"})
        assert {site.name for site in sites.weights} == linear | vocabulary
        scans = {module.format(i, f"scan.{p}") for i, p in product(range(LAYERS), "xBC")}
        assert {site.name for site in sites.scans} == scans
        assert sorted(sites.names()) == sorted(linear | vocabulary | scans)
        by_name = {site.name: site for site in sites.weights}
        assert {n for n, s in by_name.items() if s.is_vocabulary} == vocabulary
        assert {s.name for s in product_sites(sites.weights)} == linear | (
            vocabulary if tied else {"lm_head"}
        )
        assert len(by_name["backbone.embeddings"].uses) == (2 if tied else 1)
        for site in (*sites.weights, *sites.scans):
            assert site.layer == (layer_of(site.name) if ".layers." in site.name else -1)
        for scan in sites.scans:
            assert scan.groups == GROUPS[family]


def test_axes_are_those_of_the_product(bundle):
    graph = canonical(bundle)
    sizes = bundle.manifest.sizes
    for site in find_sites(graph).weights:
        assert site.shape == tuple(graph.graph.initializers[site.weight].shape.numpy())
        if site.is_vocabulary:
            assert site.shape == (sizes["V"], sizes["M"])
            assert (site.output_axis, site.input_axis) == (0, 1)
        else:
            assert (site.output_axis, site.input_axis) == (1, 0)


def test_a_quantized_graph_and_one_without_layers_are_refused(bundle):
    model = canonical(bundle)
    node = model.graph.node(0)
    node.op_type = "DequantizeLinear"
    with pytest.raises(SsmExportError) as error:
        find_sites(model)
    assert error.value.code == errors.ALREADY_QUANTIZED
    with pytest.raises(SsmExportError) as error:
        find_sites(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))
    assert error.value.code == errors.GRAPH_INVALID


def test_a_graph_whose_layers_have_no_names_is_refused(bundle):
    model = canonical(bundle)
    next(v for n in model.graph for v in n.outputs if v.name == "hidden.1").name = "other"
    with pytest.raises(SsmExportError) as error:
        Pieces(model, bundle.manifest)
    assert error.value.code == errors.GRAPH_INVALID and "hidden.1" in str(error.value)


def test_every_hidden_value_is_that_of_the_whole_graph(bundle):
    rows = random_rows(bundle, 3, 11)
    names = [f"hidden.{index}" for index in range(LAYERS + 1)]
    whole = values_of(bundle, rows, names)
    stages = list(LayerStream(bundle, rows).walk())
    assert [stage.piece.index for stage in stages] == [-1, 0, 1, 2]
    for stage, want in zip(stages, whole, strict=True):
        found = stage.hidden["float"]
        assert np.linalg.norm(found - want) <= WITHIN["fp32"] * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("precision", "ragged"), [("fp32", False), ("fp32", True), ("fp16", False), ("bf16", True)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_states_are_those_of_the_bundle(bundle_of, family, precision, ragged):
    bundle = Bundle.open(bundle_of(family, precision=precision, ragged=ragged))
    rows = random_rows(bundle, 2, 9)
    runner = open_runner(bundle, "onnxruntime")
    try:
        model = Recurrent(bundle, runner)
        want, state = model.prefill(rows, model.initial_state(len(rows)))
    finally:
        runner.close()
    stream = LayerStream(bundle, rows)
    names = {spec.name_out: spec.name_in for spec in bundle.manifest.states}
    found: dict[str, np.ndarray] = {}
    hidden = {}
    for stage in stream.walk(
        taps=lambda piece: [out for out, name in names.items() if name in piece.states],
        on_tap=lambda name, array: found.update({names[name]: array}),
    ):
        hidden = stage.hidden
    (_, logits), *_ = stream.head({"float": hidden["float"][:, -1:]})
    for name, got in {**found, "logits": logits["float"]}.items():
        right = (want[:, -1] if name == "logits" else state[name]).astype(np.float64)
        assert got.dtype == np.float32
        distance = np.linalg.norm(got - right) / np.linalg.norm(right)
        assert distance <= WITHIN[precision], name


@pytest.mark.parametrize("family", FAMILIES)
@given(rows=st.integers(1, 5), tokens=st.integers(1, 70), batch=st.integers(1, 5))
@settings(max_examples=5, deadline=None)
def test_rows_are_independent_of_how_they_are_batched(bundle_of, family, rows, tokens, batch):
    bundle = Bundle.open(bundle_of(family))
    ids = random_rows(bundle, rows, tokens, seed=rows)
    together, apart = LayerStream(bundle, ids), LayerStream(bundle, ids)
    apart.batch_rows = batch
    *_, first = together.walk()
    *_, second = apart.walk()
    np.testing.assert_allclose(first.hidden["float"], second.hidden["float"], rtol=0, atol=2e-5)


def test_a_batch_is_bounded_by_bytes(bundle, monkeypatch):
    ids = random_rows(bundle, 6, 8)
    monkeypatch.setattr(stream_module, "_BATCH_BYTES", 2 * 4 * 4 * 8 * bundle.manifest.sizes["M"])
    stream = LayerStream(bundle, ids)
    assert stream.batch_rows == 2
    seen = []
    for _ in stream.walk(taps=lambda p: [p.result], on_tap=lambda n, a: seen.append((n, len(a)))):
        pass
    assert seen == [(f"hidden.{i}", 2) for i in range(LAYERS + 1) for _ in range(3)]


def test_taps_are_values_of_the_whole_graph(bundle):
    rows = random_rows(bundle, 2, 6)
    names = [scan.value for scan in find_sites(canonical(bundle)).scans]
    want = dict(zip(names, values_of(bundle, rows, names), strict=True))
    found = {}
    for _ in LayerStream(bundle, rows).walk(
        taps=lambda piece: [n for n in names if f".layers.{piece.index}." in n],
        on_tap=lambda name, array: found.update({name: array}),
    ):
        pass
    assert set(found) == set(names)
    for name in names:
        np.testing.assert_allclose(found[name], want[name], atol=1e-5)


def test_a_variant_differs_from_its_edit_on_and_shares_what_is_before(bundle):
    def edit(model: ir.Model) -> bool:
        value = model.graph.initializers.get("backbone.layers.1.mixer.out_proj.weight")
        if value is None:
            return False
        value.const_value = ir.tensor(2 * value.const_value.numpy(), name=value.name)
        return True

    def untouched(model: ir.Model) -> bool:
        return False

    rows = random_rows(bundle, 2, 5)
    edits = {"double": edit, "same": untouched}
    stages = list(LayerStream(bundle, rows).walk(edits))
    for stage in stages:
        assert stage.hidden["same"] is stage.hidden["float"]
        assert (stage.hidden["double"] is stage.hidden["float"]) == (stage.piece.index < 1)
    # hidden.2 = hidden.1 + y W: with 2 W what is added is twice as much
    added = stages[2].hidden["float"] - stages[1].hidden["float"]
    doubled = stages[2].hidden["double"] - stages[1].hidden["float"]
    np.testing.assert_allclose(doubled, 2 * added, atol=1e-5)
    assert np.abs(stages[3].hidden["double"] - stages[3].hidden["float"]).max() > 1e-4


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_piece_holds_only_its_own_weights_and_is_fp32(bundle_of, family, precision):
    bundle = Bundle.open(bundle_of(family, precision=precision))
    pieces = Pieces(canonical(bundle), bundle.manifest)
    assert pieces.layers == LAYERS
    for piece in pieces.all:
        model = pieces.cut(piece)
        assert [value.name for value in model.graph.outputs] == [piece.result]
        inputs = {value.name for value in model.graph.inputs}
        assert inputs == {piece.source, *piece.states}
        for name, value in model.graph.initializers.items():
            assert ".layers." not in name or f".layers.{piece.index}." in name
            assert value.dtype in (ir.DataType.FLOAT, ir.DataType.INT64)
        open_session(with_bodies(model))
