"""Predictions, against arithmetic that is written out here and figures that others published."""

from __future__ import annotations

import dataclasses
import json
import math

import onnx
import pytest

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.errors import SsmExportError
from ssm_export.prediction import Needs, needs_of, predict, predict_needs
from ssm_export.targets import Target, get_target

V = 50288


def mamba(width: int, layers: int) -> tuple[int, int]:
    """Parameters and bytes of fp32 states of a Mamba-1 checkpoint: N=16, K=4, tied."""
    inner, rank = 2 * width, math.ceil(width / 16)
    layer = width * 2 * inner + inner * (rank + 32) + (rank + 1) * inner
    layer += 16 * inner + inner + 5 * inner + inner * width + width
    return V * width + layers * layer + width, layers * inner * (16 + 4) * 4


def mamba2(width: int, layers: int) -> tuple[int, int]:
    """Parameters and bytes of fp32 states of a Mamba-2 checkpoint: P=64, N=128, G=1, K=4, tied."""
    inner = 2 * width
    heads, conv = inner // 64, inner + 2 * 128
    layer = width * (2 * inner + 2 * 128 + heads) + 5 * conv + 3 * heads + inner
    layer += inner * width + width
    return V * width + layers * layer + width, layers * (heads * 64 * 128 + conv * 4) * 4


SHAPES = {
    "mamba-130m": mamba(768, 24),
    "mamba-1.4b": mamba(2048, 48),
    "mamba-2.8b": mamba(2560, 64),
    "mamba2-1.3b": mamba2(2048, 48),
    "mamba2-2.7b": mamba2(2560, 64),
}
BOARDS = {
    "h100": 3000,  # GB/s that the table was reckoned with; the data sheet says 3350
    "jetson-orin-nano": 68,
    "jetson-orin-nano-super": 102.4,
    "jetson-agx-orin": 204.8,
    "jetson-thor": 273,
}
# Tokens per second at batch 1, weights in fp16, int8 and int4, states in fp32. An int4 weight has
# its share of an fp16 scale for each block of 128.
BITS = (16, 8, 4 + 16 / 128)
CEILINGS = {
    "mamba-130m": "11381/22170/40993 258/503/929 388/757/1399 777/1513/2798 1036/2017/3730",
    "mamba-1.4b": "1082/2135/4039 24.5/48.4/91.6 36.9/72.9/138 74/146/276 99/194/368",
    "mamba-2.8b": "537/1063/2019 12.2/24.1/45.8 18.3/36.3/68.9 37/73/138 49/97/184",
    "mamba2-1.3b": "1037/1936/3335 23.5/43.9/75.6 35.4/66.1/114 71/132/228 94/176/303",
    "mamba2-2.7b": "522/985/1726 11.8/22.3/39.1 17.8/33.6/58.9 36/67/118 48/90/157",
}


def a_model(parameters: int = 10**9, states: int = 10**7, **changes: object) -> Needs:
    """Needs in fp16 of so many parameters, a tenth of them in the head."""
    made = Needs(
        weights_bytes=2 * parameters,
        read_bytes=2 * parameters,
        states_per_row=states,
        body_weights=parameters - parameters // 10,
        head_weights=parameters // 10,
        inner=4096,
        vocabulary=V,
        precision="fp16",
    )
    return dataclasses.replace(made, **changes)


def a_board(**changes: object) -> Target:
    """A device of round figures: 8 GB, of which 2 are kept; 100 GB/s; 10 TFLOPS of fp16."""
    made = Target(
        name="board",
        description="a board",
        compute_capability="8.7",
        engines=("tensorrt",),
        precisions=("fp32", "fp16"),
        memory_gb=8,
        reserve_gb=2,
        unified_memory=True,
        bandwidth_gb_s=100,
        peak_tflops={"fp16": 10, "int8": 20},
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("model", CEILINGS)
def test_decode_ceilings_are_the_tabulated_ones(model):
    parameters, states = SHAPES[model]
    for (board, bandwidth), cell in zip(BOARDS.items(), CEILINGS[model].split(), strict=True):
        target = dataclasses.replace(get_target(board), bandwidth_gb_s=bandwidth)
        for bits, expected in zip(BITS, cell.split("/"), strict=True):
            read = int(parameters * bits / 8)
            found = predict_needs(a_model(states=states, read_bytes=read), target)
            assert found.decode_tokens_per_s == pytest.approx(float(expected), rel=0.015)


def test_decode_of_a_batch_reads_the_weights_once():
    needs = a_model(read_bytes=2 * 10**9, states=10**8)
    for batch, expected in ((1, 100 / 2.2), (8, 8 * 100 / 3.6), (64, 64 * 100 / 14.8)):
        found = predict_needs(needs, a_board(), batch=batch)
        assert found.decode_tokens_per_s == pytest.approx(expected)


def test_each_power_mode_has_its_ceiling():
    found = predict_needs(a_model(), get_target("jetson-agx-orin"))
    rates = {mode.name: mode.decode_tokens_per_s for mode in found.modes}
    assert rates["MAXN"] == found.decode_tokens_per_s
    assert rates["MODE_15W"] / rates["MAXN"] == pytest.approx(2133 / 3200, rel=1e-3)
    shown = dict(found.rows())["predicted decode"]
    assert "MODE_15W" in shown and "MODE_30W" not in shown  # which is as fast as MAXN


def test_prefill_is_bound_by_the_slower_of_memory_and_arithmetic():
    needs = a_model(10**9, states=10**7)
    long = predict_needs(needs, a_board(), tokens=1000, batch=2)
    # 2 operations × 2 rows × (1000 × 0.9e9 body weights + 1 × 0.1e9 of the head), at 1e13 per s.
    assert long.prefill_tokens_per_s == pytest.approx(2000 / (2 * 2 * 900.1e9 / 1e13))
    assert long.prefill_bound == "arithmetic"
    short = predict_needs(needs, a_board(), tokens=2)
    assert short.prefill_tokens_per_s == pytest.approx(2 / (2.02e9 / 1e11))
    assert short.prefill_bound == "memory"
    every = predict_needs(dataclasses.replace(needs, every_logits=True), a_board(), tokens=1000)
    assert every.prefill_tokens_per_s == pytest.approx(1000 / (2 * 1e12 / 1e13))


def test_prefill_of_quantized_inputs_is_bound_by_their_rate():
    eight = predict_needs(a_model(inputs=("int8",)), a_board())
    assert eight.prefill_tokens_per_s == pytest.approx(
        2 * predict_needs(a_model(), a_board()).prefill_tokens_per_s
    )


@pytest.mark.parametrize(
    ("needs", "target", "said"),
    [
        ({"precision": "fp32"}, "h100", "no peak of fp32 products is recorded for h100"),
        ({"inputs": ("fp8",)}, "jetson-agx-orin", "no peak of fp8 products"),
        ({}, "dgx-spark", "no peak of fp16 products"),
        ({}, "rtx-ada", "a class of cards whose bandwidths differ"),
    ],
)
def test_no_prefill_ceiling_without_its_peak(needs, target, said):
    found = predict_needs(a_model(**needs), get_target(target))
    assert found.prefill_tokens_per_s is None
    assert said in found.prefill_bound
    assert said in dict(found.rows())["predicted prefill"]


ROOM = 6 * 2**30


@pytest.mark.parametrize(
    ("weights", "unified", "fits", "said"),
    [
        (ROOM // 5, True, True, ""),
        (ROOM // 3, True, None, "4 times the weights"),
        (ROOM // 3, False, True, ""),  # the builder's memory is the host's
        (ROOM - 30_000_000, False, None, "a prompt may need"),
        (ROOM - 9_000_000, True, False, "weights and states alone"),
        (ROOM + 1, False, False, "weights and states alone"),
    ],
)
def test_what_fits(weights, unified, fits, said):
    needs = a_model(states=10**7, weights_bytes=weights)
    found = predict_needs(needs, a_board(unified_memory=unified))
    assert found.fits is fits
    assert found.available_bytes == ROOM
    assert found.builder_bytes == 4 * weights
    assert found.states_bytes == 2 * 10**7
    assert bool(found.notes) == (fits is not True)
    assert said in " ".join(found.notes)


def test_the_largest_batch_is_the_last_that_fits():
    needs = a_model(states=10**7, weights_bytes=10**9)
    board = a_board(unified_memory=False)
    most = predict_needs(needs, board, tokens=64).largest_batch
    assert most is not None and most > 10
    assert predict_needs(needs, board, tokens=64, batch=most).fits is True
    assert predict_needs(needs, board, tokens=64, batch=most + 1).fits is None
    assert predict_needs(needs, board, tokens=64, batch=100 * most).fits is False
    assert predict_needs(a_model(weights_bytes=ROOM), board).largest_batch == 0


def test_a_class_of_cards_says_what_is_not_known():
    found = predict_needs(a_model(), get_target("rtx-ada"))
    assert (found.fits, found.available_bytes, found.decode_tokens_per_s) == (None, None, None)
    assert found.largest_batch is None
    assert "its memory is not known" in found.notes[0]
    assert found.weights_bytes == 2 * 10**9


def test_a_prediction_says_that_it_is_one():
    for target in ("jetson-agx-orin", "rtx-any"):
        found = predict_needs(a_model(), get_target(target))
        document = found.as_json()
        assert document["predicted"] is True
        assert document["modes"] == [dataclasses.asdict(mode) for mode in found.modes]
        assert all("predicted" in name for name, _ in found.rows())


@pytest.mark.parametrize("changes", [{"batch": 0}, {"tokens": 0}])
def test_numbers_below_one_are_refused(changes):
    with pytest.raises(SsmExportError) as caught:
        predict_needs(a_model(), a_board(), **changes)
    assert caught.value.code == errors.BAD_OPTION


def stored_bytes(bundle: Bundle) -> dict[str, int]:
    """Bytes of each initializer of the step graph, by onnx's own reading."""
    model = onnx.load(str(bundle.graph_path("step", "canonical")))
    return {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}


def test_a_bundle_is_predicted_from_its_files(bundle_of, family):
    """The smallest models of the families, of which one shares its embedding with its head."""
    bundle = Bundle.open(bundle_of(family))
    sizes, target = bundle.manifest.sizes, get_target("jetson-orin-nano")
    found = predict(bundle, target, batch=3)
    assert found.weights_bytes == (bundle.path / "onnx/weights.data").stat().st_size
    conv = sizes["D"] + (2 * sizes["G"] * sizes["N"] if family == "mamba2" else 0)
    row = 4 * sizes["L"] * (sizes["D"] * sizes["N"] + (sizes["K"] - 1) * conv)
    assert found.states_bytes == 2 * 3 * row
    tied = json.loads((bundle.path / "config.json").read_text())["tie_word_embeddings"]
    assert tied == (family == "mamba")
    table = 0 if tied else sizes["V"] * sizes["M"]  # of which one row is read for a token
    read = sum(stored_bytes(bundle).values()) - 4 * max(0, table - sizes["M"])
    assert found.decode_tokens_per_s == pytest.approx(3 * 68e9 / (read + 2 * 3 * row))
    needs = needs_of(bundle)
    assert needs.body_weights == sizes["parameters"] - table - sizes["V"] * sizes["M"]
    assert needs.head_weights == sizes["V"] * sizes["M"]


@pytest.mark.slow
def test_a_quantized_bundle_is_predicted_from_its_own_bytes(bundle_of, tmp_path):
    import ssm_export

    source = bundle_of("mamba2", lowering="native")
    ssm_export.quantize(
        source, tmp_path / "w8", recipe="w8a16", sequences=2, tokens=32, verify=False,
        sensitivity=False,
    )  # fmt: skip
    small, whole = Bundle.open(tmp_path / "w8"), Bundle.open(source)
    target = get_target("jetson-thor")
    before, after = predict(whole, target), predict(small, target)
    assert after.weights_bytes == (tmp_path / "w8/onnx/weights.data").stat().st_size
    assert after.weights_bytes < before.weights_bytes / 2
    assert after.decode_tokens_per_s > before.decode_tokens_per_s
    assert needs_of(small).body_weights == needs_of(whole).body_weights
