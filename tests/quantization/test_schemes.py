"""Codes and scales, against onnx.reference, onnxruntime, ml_dtypes casts and brute force."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.schemes import (
    SCHEMES,
    QuantizedTensor,
    fake_quantize,
    largest_block,
    quantize_weight,
    scales_of,
    with_scales,
)

ONNX_TYPE = {
    "int8": TensorProto.INT8,
    "int4": TensorProto.INT4,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
SHRINKS = [1 - step / 32 for step in range(17)]


def random_weight(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    heavy = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape))
    return heavy.astype(np.float32)


def onnx_round_trip(x, scale, scheme: str, axis: int = 0, block: int = 0, run=None):
    """(codes, dequantized) of ONNX QuantizeLinear and DequantizeLinear, opset 21."""
    fields = {"axis": axis, "block_size": block} if np.ndim(scale) else {}
    kind = ONNX_TYPE[scheme]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=kind, **fields),
            helper.make_node("DequantizeLinear", ["q", "s"], ["y"], **fields),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, list(np.shape(x))),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, list(np.shape(scale))),
        ],
        [
            helper.make_tensor_value_info("q", kind, list(np.shape(x))),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, list(np.shape(x))),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    feeds = {"x": np.asarray(x), "s": np.asarray(scale, np.float32)}
    if run is not None:
        session = run.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return session.run(["y"], feeds)[0]
    return ReferenceEvaluator(model).run(None, feeds)


def broadcast_scale(tensor: QuantizedTensor) -> np.ndarray:
    scale = tensor.scale.astype(np.float64) * tensor.global_scale
    if scale.ndim == 0:
        return np.broadcast_to(scale, tensor.values.shape)
    if tensor.block:
        return np.repeat(scale, tensor.block, axis=tensor.axis)
    shape = [1] * tensor.values.ndim
    shape[tensor.axis] = -1
    return np.broadcast_to(scale.reshape(shape), tensor.values.shape)


def every_code(scheme: str) -> np.ndarray:
    """All numbers a format can hold, by listing its bit patterns."""
    if scheme in ("int8", "int4"):
        top = {"int8": 127, "int4": 7}[scheme]
        return np.arange(-top, top + 1, dtype=np.float64)
    if scheme == "nvfp4":
        patterns = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn)
    else:
        patterns = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    codes = patterns.astype(np.float64)
    return np.unique(codes[np.isfinite(codes)])


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_channel_codes_are_those_of_quantize_linear(scheme, axis):
    weight = random_weight(24, 40)
    tensor = quantize_weight(weight, scheme, axis=axis)
    codes, back = onnx_round_trip(weight, tensor.scale, scheme, axis=axis or 0)
    np.testing.assert_array_equal(tensor.values.astype(np.float32), codes.astype(np.float32))
    np.testing.assert_array_equal(tensor.dequantized(), back)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block", [16, 32])
def test_block_codes_are_those_of_quantize_linear(scheme, axis, block):
    weight = random_weight(64, 96)
    tensor = quantize_weight(weight, scheme, axis=axis, block=block)
    codes, back = onnx_round_trip(weight, tensor.scale, scheme, axis=axis, block=block)
    np.testing.assert_array_equal(tensor.values, codes.astype(np.int8))
    np.testing.assert_array_equal(tensor.dequantized(), back)


def test_int8_agrees_with_onnxruntime_quantization():
    quant_utils = pytest.importorskip("onnxruntime.quantization.quant_utils")
    weight = random_weight(20, 32)
    for channel in range(20):
        row = weight[channel]
        limits = (row.min(), row.max(), np.int8(-127), np.int8(127))
        zero, scale = quant_utils.compute_scale_zp(*limits, symmetric=True)
        codes = quant_utils.quantize_nparray(TensorProto.INT8, row, scale, zero)
        own = quantize_weight(weight, "int8", axis=0)
        assert own.scale[channel] == pytest.approx(float(scale), rel=2e-7)
        given_scale = with_scales(row[None], "int8", np.float32(scale).reshape(1), axis=0)
        np.testing.assert_array_equal(given_scale.values[0], codes)


@pytest.mark.parametrize(
    "scheme,axis,block",
    [
        ("int8", 0, 0),
        ("int4", 1, 32),
        ("fp8", 1, 0),
        ("fp8", None, 0),
        ("mxfp8", 0, 32),
        ("mxfp8", 1, 32),
        ("nvfp4", 0, 16),
        ("nvfp4", 1, 16),
    ],
)
@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_every_value_takes_the_nearest_code(scheme, axis, block, clip):
    weight = random_weight(64, 32, seed=3)
    tensor = quantize_weight(weight, scheme, axis=axis, block=block, clip=clip)
    scale = broadcast_scale(tensor)
    distance = np.abs(weight[..., None] - every_code(scheme) * scale[..., None]).min(axis=-1)
    taken = np.abs(weight - tensor.values.astype(np.float64) * scale)
    # A float32 quotient may fall on the other side of a tie.
    assert (taken <= distance + 1e-6 * scale * SCHEMES[scheme].maximum).all()
    np.testing.assert_allclose(
        tensor.dequantized(), tensor.values.astype(np.float64) * scale, rtol=3e-7
    )


def test_mxfp8_scale_is_the_least_power_of_two_that_clips_nothing():
    weight = random_weight(4, 64, seed=1)
    weight[0, :32] = 0
    weight[0, 0] = 448 * 2.0**-3  # exactly at the edge
    weight[1, 0] = np.nextafter(np.float32(448 * 2.0**3), np.float32(np.inf))
    tensor = quantize_weight(weight, "mxfp8", axis=1, block=32)
    amplitude = np.abs(weight).reshape(4, 2, 32).max(axis=-1)
    powers = 2.0 ** np.arange(-40, 40)
    expected = [[powers[powers * 448 >= one].min() for one in row] for row in amplitude]
    np.testing.assert_array_equal(tensor.scale.astype(np.float64), expected)
    assert tensor.scale.dtype == ml_dtypes.float8_e8m0fnu


def test_nvfp4_has_two_levels_of_scales():
    weight = random_weight(8, 64, seed=2)
    weight[3, :16] *= 1e-7  # its scale would be below the smallest E4M3 number
    weight[5, 16:32] = 0
    tensor = quantize_weight(weight, "nvfp4", axis=1, block=16)
    amplitude = np.abs(weight).reshape(8, 4, 16).max(axis=-1)
    assert tensor.global_scale == pytest.approx(amplitude.max() / 6 / 448, rel=1e-6)
    assert tensor.scale.astype(np.float32).max() == 448
    wanted = np.maximum(amplitude / 6 / tensor.global_scale, 2.0**-9)
    nearest = wanted.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    nonzero = amplitude > 0
    np.testing.assert_array_equal(tensor.scale.astype(np.float32)[nonzero], nearest[nonzero])
    assert not tensor.dequantized()[5, 16:32].any()


def brute_force_loss(weight, scale, scheme, shrink, layout):
    scale = scale.astype(np.float64) * shrink
    codes = every_code(scheme)
    error = np.empty(weight.shape)
    for place in np.ndindex(weight.shape):
        own = scale[layout(place)]
        error[place] = (np.abs(weight[place] - codes * own)).min() ** 2
    return error


@pytest.mark.parametrize("scheme,block", [("int8", 0), ("int4", 0), ("int4", 16), ("fp8", 0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_mse_takes_the_best_shrink_factor(scheme, block, axis):
    weight = random_weight(32, 16 * 2, seed=4)[:, :32]
    plain = scales_of(weight, scheme, axis=axis, block=block)
    found = scales_of(weight, scheme, axis=axis, block=block, clip="mse")

    def place(at):
        if not block:
            return (at[axis],)
        return tuple(i // block if dim == axis else i for dim, i in enumerate(at))

    losses = []
    for shrink in SHRINKS:
        error = brute_force_loss(weight, plain, scheme, shrink, place)
        total = np.zeros(plain.shape)
        for at in np.ndindex(weight.shape):
            total[place(at)] += error[at]
        losses.append(total)
    chosen = np.rint((1 - found / plain) * 32).astype(int)
    np.testing.assert_allclose(found, plain * (1 - chosen / 32), rtol=1e-6)
    taken = np.take_along_axis(np.stack(losses), chosen[None], 0)[0]
    assert (taken <= np.min(losses, axis=0) * (1 + 1e-4)).all()
    assert scheme == "int8" or (chosen > 0).any()


def squared_error(weight, scheme, clip, **where) -> float:
    back = quantize_weight(weight, scheme, clip=clip, **where).dequantized()
    return float(np.square(back.astype(np.float64) - weight).sum())


def test_mse_clips_a_large_normal_int8_tensor_near_4_sigma():
    """The optimum of 8 even bits for normal values, where their largest is 5.2 sigma."""
    weight = np.random.default_rng(5).standard_normal((2048, 1024), dtype=np.float32)
    assert 3.8 < scales_of(weight, "int8", axis=None, clip="mse") * 127 < 4.1
    for axis in (None, 1):
        plain = squared_error(weight, "int8", "minmax", axis=axis)
        assert squared_error(weight, "int8", "mse", axis=axis) < plain


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8"])
def test_importance_counts_a_row_as_often_as_it_says(scheme):
    weight = random_weight(64, 40, seed=8)
    times = np.random.default_rng(0).integers(1, 50, 64)
    weighed = scales_of(weight, scheme, axis=1, clip="mse", importance=times[:, None])
    repeated = scales_of(np.repeat(weight, times, axis=0), scheme, axis=1, clip="mse")
    np.testing.assert_array_equal(weighed, repeated)
    assert (weighed != scales_of(weight, scheme, axis=1, clip="mse")).any()


def test_importance_of_inputs_in_blocks():
    weight = random_weight(64, 24, seed=9)
    share = np.exp(3 * np.random.default_rng(1).standard_normal((64, 1)))

    def weighed_error(importance):
        where = {"axis": 0, "block": 16, "clip": "mse", "importance": importance}
        error = quantize_weight(weight, "int4", **where).dequantized() - weight
        return np.square(error * np.sqrt(share)).reshape(4, 16, 24).sum(axis=1)

    assert (weighed_error(share) <= weighed_error(None) * (1 + 1e-5)).all()
    assert weighed_error(share).sum() < 0.9 * weighed_error(None).sum()


def test_mse_finds_better_nvfp4_scales():
    weight = random_weight(64, 64, seed=5)
    where = {"axis": 1, "block": 16}
    plain = squared_error(weight, "nvfp4", "minmax", **where)
    assert squared_error(weight, "nvfp4", "mse", **where) < plain


@pytest.mark.parametrize("seed", range(12))
def test_mse_leaves_the_global_scale_of_nvfp4(seed):
    """The largest block would often like a smaller scale; all others would move with it."""
    weight = random_weight(32, 32, seed=seed)
    top = np.abs(weight).max()
    weight[3, :16] = top * 5  # codes 4 or 6 under the scale of its largest value,
    weight[3, 0] = top * 6  # so that this block alone is better off with 5/6 of it
    tensor = quantize_weight(weight, "nvfp4", axis=1, block=16, clip="mse")
    assert tensor.global_scale == pytest.approx(np.abs(weight).max() / 6 / 448, rel=1e-6)
    scale = tensor.scale.astype(np.float32) * np.float32(tensor.global_scale)
    again = with_scales(weight, "nvfp4", scale, axis=1, block=16)
    np.testing.assert_array_equal(again.dequantized(), tensor.dequantized())


def test_mse_halves_an_mxfp8_scale_that_costs_small_values():
    weight = np.full((1, 32), 2.0**-9, np.float32)  # the smallest code of scale 1
    weight[0, 0] = 450  # becomes 448 with scale 1 and with scale 2
    for clip, scale in (("minmax", 2.0), ("mse", 1.0)):
        tensor = quantize_weight(weight, "mxfp8", axis=1, block=32, clip=clip)
        assert float(tensor.scale[0, 0]) == scale


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_scales_are_rounded_before_codes_are_chosen(dtype):
    weight = random_weight(16, 64, seed=6) * 100
    tensor = quantize_weight(weight, "int8", axis=0, scale_dtype=dtype)
    rounded = (np.abs(weight).max(axis=1) / np.float32(127)).astype(dtype).astype(np.float32)
    assert tensor.scale.dtype == np.float32
    np.testing.assert_array_equal(tensor.scale, rounded)
    expected = np.clip(np.rint(weight / rounded[:, None]), -127, 127)
    np.testing.assert_array_equal(tensor.values, expected)
    assert tensor.scale_bytes == 2


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_float_types(dtype):
    weight = random_weight(16, 32).astype(dtype)
    own = quantize_weight(weight, "int8", axis=1)
    wide = quantize_weight(weight.astype(np.float32), "int8", axis=1)
    np.testing.assert_array_equal(own.values, wide.values)


def test_bytes_in_a_file():
    weight = random_weight(64, 128)
    assert quantize_weight(weight, "int8", axis=0).nbytes == 64 * 128 + 64 * 4
    half = quantize_weight(weight, "int4", axis=1, block=32, scale_dtype=np.float16)
    assert half.nbytes == 64 * 128 // 2 + 64 * 4 * 2
    assert quantize_weight(weight, "fp8", axis=None).nbytes == 64 * 128 + 4
    assert quantize_weight(weight, "mxfp8", axis=0, block=32).nbytes == 64 * 128 + 2 * 128
    assert quantize_weight(weight, "nvfp4", axis=0, block=16).nbytes == 64 * 64 + 4 * 128 + 4
    assert quantize_weight(weight[:1, :3], "int4", axis=0).nbytes == 2 + 4


def test_largest_block():
    allowed = (32, 64, 128)
    assert largest_block(1536, 128, allowed) == 128
    assert largest_block(1536, 100, allowed) == 64
    assert largest_block(96, 128, allowed) == 32
    assert largest_block(48, 128, allowed) == 0
    assert largest_block(48, 128, ()) == 0


@pytest.mark.parametrize("axis,block", [(0, 0), (1, 0), (0, 16), (1, 16), (None, 0)])
def test_the_transpose_dequantizes_to_the_transpose(axis, block):
    tensor = quantize_weight(random_weight(32, 48), "int8", axis=axis, block=block)
    turned = tensor.transposed()
    np.testing.assert_array_equal(turned.dequantized(), tensor.dequantized().T)
    assert turned.nbytes == tensor.nbytes


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_min_max_is_wrong_by_half_a_step_at_most(data):
    scheme = data.draw(st.sampled_from(["int8", "int4"]))
    rank = data.draw(st.integers(1, 4))
    axis = data.draw(st.integers(-rank, rank - 1))
    block = data.draw(st.sampled_from([0, 16]))
    shape = [data.draw(st.integers(1, 5)) for _ in range(rank)]
    if block:
        shape[axis] = block * data.draw(st.integers(1, 3))
    values = st.floats(-100, 100, width=32).map(lambda v: 0.0 if abs(v) < 1e-30 else v)
    weight = data.draw(hnp.arrays(np.float32, tuple(shape), elements=values))
    tensor = quantize_weight(weight, scheme, axis=axis, block=block)
    step = broadcast_scale(tensor)
    assert (np.abs(tensor.dequantized() - weight) <= step * (0.5 + 1e-4)).all()
    assert np.abs(tensor.values).max() <= SCHEMES[scheme].maximum
    expected = list(shape)
    expected[axis] = shape[axis] // block if block else shape[axis]
    assert list(tensor.scale.shape) == (expected if block else [shape[axis]])


@settings(max_examples=60, deadline=None)
@given(
    x=hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(-900, 900, width=32)),
    scale=st.floats(2.0**-6, 8, width=32),
    scheme=st.sampled_from(["int8", "int4", "fp8"]),
)
def test_activations_round_trip_as_onnx_does(x, scale, scheme):
    _, expected = onnx_round_trip(x, np.float32(scale), scheme)
    np.testing.assert_array_equal(fake_quantize(x, scheme, scale), expected)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_activations_round_trip_as_onnxruntime_does(scheme):
    runtime = pytest.importorskip("onnxruntime")
    x = np.concatenate([random_weight(4, 500).ravel() * 30, np.arange(-300, 300, 0.25)])
    x = x.astype(np.float32)
    expected = onnx_round_trip(x, np.float32(0.5), scheme, run=runtime)
    np.testing.assert_array_equal(fake_quantize(x, scheme, 0.5), expected)


def test_fp8_activations_are_ml_dtypes_casts_everywhere():
    """Every second-coarsest float32 pattern: all exponents, ties, subnormals, saturation."""
    patterns = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    patterns = patterns[np.isfinite(patterns)]
    expected = np.clip(patterns, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(fake_quantize(patterns, "fp8", 1.0), expected)
    special = fake_quantize(np.float32([np.inf, -np.inf, np.nan]), "fp8", 1.0)
    np.testing.assert_array_equal(special, [448, -448, np.nan])
    assert fake_quantize(np.float32(3.3), "fp8", 1.0).shape == ()


def test_an_activation_keeps_its_values():
    x = random_weight(5, 5)
    kept = x.copy()
    fake_quantize(x, "fp8", 1.0)
    fake_quantize(x, "int8", 1.0)
    np.testing.assert_array_equal(x, kept)


def test_zero_channels_have_scale_one():
    weight = random_weight(4, 32)
    weight[2] = 0
    for clip in ("minmax", "mse"):
        tensor = quantize_weight(weight, "int8", axis=0, scale_dtype=np.float16, clip=clip)
        assert tensor.scale[2] == 1
        assert not tensor.values[2].any()


@pytest.mark.parametrize(
    "value,dtype,scheme",
    [(1e-4, np.float16, "int8"), (1e-12, np.float16, "int4"), (1e-37, np.float32, "int8")],
)
def test_scales_that_underflow_are_refused(value, dtype, scheme):
    weight = random_weight(4, 32)
    weight[2] = 0
    weight[2, 7] = value
    with pytest.raises(SsmExportError) as caught:
        quantize_weight(weight, scheme, axis=0, scale_dtype=dtype, name="layers.1.in_proj")
    assert caught.value.code is errors.SCALE_UNDERFLOW
    assert "channel 2 of axis 0" in str(caught.value)
    assert "layers.1.in_proj" in str(caught.value)
    assert "--precision" in caught.value.fix
    if dtype is np.float16:
        quantize_weight(weight, scheme, axis=0, scale_dtype=ml_dtypes.bfloat16)


def test_scales_that_overflow_are_refused():
    weight = np.full((2, 4), 1e9, np.float32)
    with pytest.raises(SsmExportError, match="overflows float16") as caught:
        quantize_weight(weight, "int8", axis=0, scale_dtype=np.float16)
    assert caught.value.code is errors.NOT_FINITE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    weight = random_weight(64, 32)
    weight[17, 20] = bad
    with pytest.raises(SsmExportError, match=r"block \[1, 20\] of 16") as caught:
        quantize_weight(weight, "int4", axis=0, block=16)
    assert caught.value.code is errors.NOT_FINITE


@pytest.mark.parametrize(
    "scheme,axis,block,clip",
    [
        ("int4", 0, 48, "minmax"),
        ("int4", 1, 64, "minmax"),
        ("fp8", 0, 32, "minmax"),
        ("mxfp8", 0, 0, "minmax"),
        ("int8", 2, 0, "minmax"),
        ("int8", None, 16, "minmax"),
        ("int8", 0, 0, "median"),
        ("int3", 0, 0, "minmax"),
    ],
)
def test_what_cannot_be_is_refused(scheme, axis, block, clip):
    with pytest.raises(SsmExportError) as caught:
        quantize_weight(random_weight(96, 96), scheme, axis=axis, block=block, clip=clip)
    assert caught.value.code is errors.BAD_OPTION
    assert caught.value.fix


def test_activations_have_no_block_formats():
    with pytest.raises(SsmExportError, match="nvfp4"):
        fake_quantize(np.ones(4, np.float32), "nvfp4", 1.0)


@pytest.mark.parametrize("scheme,axis,block", [("int8", 1, 0), ("int4", 0, 32), ("nvfp4", 1, 16)])
def test_memory_stays_near_the_result(scheme, axis, block):
    weight = random_weight(1024, 2048)
    tracemalloc.start()
    quantize_weight(weight, scheme, axis=axis, block=block, clip="mse")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * weight.nbytes
