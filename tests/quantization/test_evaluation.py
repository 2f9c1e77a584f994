"""Bits, divergence, agreement and noise against numpy on logits of the whole graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from whole_graph import textbook, whole_logits

from ssm_export.bundle import Bundle
from ssm_export.engines import open_runner
from ssm_export.engines.runner import Recurrent
from ssm_export.quantization import evaluation
from ssm_export.quantization.evaluation import evaluate, evaluate_steps
from ssm_export.quantization.stream import LayerStream

SHAPE = (3, 9)
HEAD_SCALE = 1.25
BYTES_PER_TOKEN = 3.5


@pytest.fixture(scope="module")
def bundle(bundle_of, family):
    return Bundle.open(bundle_of(family))


@pytest.fixture(scope="module")
def rows(bundle):
    return np.random.default_rng(5).integers(0, bundle.manifest.sizes["V"], SHAPE)


@pytest.fixture(scope="module")
def logits(bundle, rows):
    return whole_logits(bundle, rows)


def scale_weight(factor, part):
    """An edit that multiplies the weight of the head (Gemm), or of a layer's MatMul."""

    def edit(model: ir.Model) -> bool:
        for node in model.graph:
            if node.op_type == part or (node.op_type == "MatMul" and part in str(node.name)):
                weight = node.inputs[1]
                weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(factor))
                return True
        return False

    return edit


def test_quality_is_that_of_numpy_on_the_whole_graphs(bundle, rows, logits):
    edits = {"hot": scale_weight(HEAD_SCALE, "Gemm")}
    found = evaluate(LayerStream(bundle, rows), edits, BYTES_PER_TOKEN).quality
    assert list(found) == ["float", "hot"]
    for name, other in (("float", logits), ("hot", logits * HEAD_SCALE)):
        bits, kl, same = textbook(rows, logits, other)
        quality = found[name]
        assert quality.tokens == SHAPE[0] * (SHAPE[1] - 1)
        assert quality.bits_per_token == pytest.approx(bits, rel=1e-5)
        assert quality.bits_per_byte == pytest.approx(bits / BYTES_PER_TOKEN, rel=1e-5)
        lost = bits - textbook(rows, logits, logits)[0]
        assert quality.lost_bits_per_token == pytest.approx(lost, rel=1e-3, abs=1e-9)
        assert quality.lost_bits_per_byte == pytest.approx(
            lost / BYTES_PER_TOKEN, rel=1e-3, abs=1e-9
        )
        assert quality.perplexity == pytest.approx(2**bits, rel=1e-4)
        assert quality.kl_bits == pytest.approx(kl.mean(), rel=1e-4, abs=1e-12)
        assert quality.top1 == same
    worst = found["hot"]
    kl = textbook(rows, logits, logits * HEAD_SCALE)[1]
    assert (worst.worst_row, worst.worst_token) == np.unravel_index(kl.argmax(), kl.shape)
    assert worst.worst_kl_bits == pytest.approx(kl.max(), rel=1e-4)
    assert found["hot"].kl_bits > 1e-4  # the variant does differ


def test_batches_of_positions_do_not_change_the_sums(bundle, rows, monkeypatch):
    edits = {"layer": scale_weight(1.1, "layers.1.mixer.out_proj")}
    whole = evaluate(LayerStream(bundle, rows), edits, None)
    monkeypatch.setattr(evaluation, "_PART", 4 * bundle.manifest.sizes["V"])
    monkeypatch.setattr("ssm_export.quantization.stream._BATCH_BYTES", 2100)
    parts = evaluate(LayerStream(bundle, rows), edits, None)
    for name, quality in whole.quality.items():
        assert parts.quality[name].bits_per_byte is None
        assert parts.quality[name].kl_bits == pytest.approx(quality.kl_bits, rel=1e-6, abs=1e-11)
        assert parts.quality[name].bits_per_token == pytest.approx(quality.bits_per_token, rel=1e-6)
    assert whole.quality["layer"].kl_bits > 0


def add_known_noise(name, noise):
    """An edit that adds an array (1,T,M) to a residual stream."""

    def edit(model: ir.Model) -> bool:
        last = model.graph.outputs[0]
        if last.name != name:
            return False
        constant = ir.Value(name="noise", const_value=ir.tensor(noise, name="noise"))
        constant.shape, constant.type = ir.Shape(list(noise.shape)), last.type
        model.graph.initializers["noise"] = constant
        node = ir.node("Add", [last, constant], name="noisy")
        last.name, node.outputs[0].name = "clean", name
        node.outputs[0].type, node.outputs[0].shape = last.type, last.shape
        model.graph.append(node)
        model.graph.outputs[0] = node.outputs[0]
        return True

    return edit


def test_noise_of_a_known_size_is_seen_where_it_was_added(bundle, rows):
    stream = LayerStream(bundle, rows)
    clean = {s.piece.index: s.hidden["float"] for s in stream.walk()}[0].astype(np.float64)
    noise = np.random.default_rng(1).normal(size=(1, *clean.shape[1:])).astype(np.float32)
    noise *= 0.01
    snr = evaluate(stream, {"noisy": add_known_noise("hidden.1", noise)}, None).snr_db["noisy"]
    expected = 10 * np.log10((clean**2).sum() / (len(clean) * (noise.astype(float) ** 2).sum()))
    assert len(snr) == bundle.manifest.sizes["L"] + 2
    assert snr[0] == np.inf  # the embedding is not touched
    assert snr[1] == pytest.approx(expected, abs=1e-3)
    assert all(np.isfinite(value) for value in snr[1:])


def test_a_variant_that_changes_nothing_has_no_noise(bundle, rows):
    found = evaluate(LayerStream(bundle, rows), {"same": lambda model: False}, None)
    assert set(found.snr_db["same"]) == {np.inf}
    assert found.quality["same"] == found.quality["float"]
    assert found.as_json()["snr_db"]["same"] == [None] * len(found.snr_db["same"])


def test_nan_is_never_taken_for_quality(bundle, rows):
    broken = scale_weight(np.nan, "Gemm")
    found = evaluate(LayerStream(bundle, rows), {"broken": broken}, None)
    assert np.isnan(found.quality["broken"].kl_bits)
    assert np.isnan(found.quality["broken"].worst_kl_bits)
    assert found.quality["broken"].as_json()["bits_per_token"] is None
    assert np.isnan(found.snr_db["broken"][-1])
    assert found.quality["float"].top1 == 1.0


@pytest.mark.parametrize("budget", [1 << 28, 1])
def test_the_step_graph_is_compared_token_by_token(bundle, rows, logits, monkeypatch, budget):
    """With the least budget: one row and one token at a time."""
    monkeypatch.setattr(evaluation, "_STATE_BYTES", budget)
    monkeypatch.setattr(evaluation, "_LOGIT_BYTES", budget)
    stream = LayerStream(bundle, rows)
    runner = open_runner(bundle, "onnxruntime")
    try:
        model = Recurrent(bundle, runner)
        quality = evaluate_steps(model, rows, stream, BYTES_PER_TOKEN)
        biased = evaluate_steps(Hotter(model), rows, stream, BYTES_PER_TOKEN)
    finally:
        runner.close()
    bits, _, _ = textbook(rows, logits, logits)
    assert quality.tokens == SHAPE[0] * (SHAPE[1] - 1)
    assert quality.bits_per_token == pytest.approx(bits, rel=1e-5)
    assert 0 <= quality.kl_bits < 1e-9
    assert quality.top1 == 1.0
    bits, kl, same = textbook(rows, logits, logits * HEAD_SCALE)
    assert biased.bits_per_token == pytest.approx(bits, rel=1e-5)
    assert biased.kl_bits == pytest.approx(kl.mean(), rel=1e-4)
    assert biased.top1 == same
    assert (biased.worst_row, biased.worst_token) == np.unravel_index(kl.argmax(), kl.shape)


class Hotter:
    """A model whose step graph gives logits that are too large."""

    def __init__(self, model: Recurrent) -> None:
        self.model = model
        self.states = model.states
        self.initial_state = model.initial_state

    def step(self, ids, state):
        logits, state = self.model.step(ids, state)
        return logits * np.float32(HEAD_SCALE), state
