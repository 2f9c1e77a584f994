"""Operators of the ONNX standard: contracts against ONNX itself, kernels against the contracts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
import pytest
from kernel_calls import H100, make_plan, poisoned, to_numpy, to_torch
from one_call import PRECISION, assert_within, nmse, rounded

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, all_ops
from ssm_export_plugins import kernels, standard
from ssm_export_plugins.launch import run
from ssm_export_plugins.model_calls import model_calls
from ssm_export_plugins.standard.linear_attention import RULES, is_delta, is_gated

LINEAR, CONV = (standard.get(name) for name in ("LinearAttention", "CausalConvWithState"))
SMALL = {"B": 1, "T": 5, "H": 2, "G": 1, "K": 5, "V": 6}
"""Sizes of what runs token by token."""

SHARED = {"B": 2, "T": 65, "H": 2, "G": 2, "K": 20, "V": 24}
"""Sizes of what runs in chunks: two queries share a head, and no width is a power of two."""

TYPES = ["float32", "float16", "bfloat16"]


def rule_inputs(
    rule: str, sizes: Mapping[str, int], omit: Collection[str] = (), seed: int = 0
) -> dict[str, np.ndarray]:
    forbidden = [] if is_gated(rule) else ["decay"]
    forbidden += [] if is_delta(rule) else ["beta"]
    rng = np.random.default_rng(seed)
    return LINEAR.make_inputs(rng, sizes, {*forbidden, *omit})


def rule_attributes(rule: str, sizes: Mapping[str, int], **others: Any) -> dict[str, Any]:
    heads = sizes["H"]
    counts = {"q_num_heads": heads * sizes["G"], "kv_num_heads": heads}
    return {"update_rule": rule, **counts, **others}


def call_of(name: str, feeds: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> Call:
    """The call of these arrays for any length, unless it is one token."""
    shapes = {port: array.shape for port, array in feeds.items()}
    return standard.call(name, shapes, {p: str(a.dtype) for p, a in feeds.items()}, attributes)


def check(
    name: str,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    *,
    kind: str = "float32",
    state: str = "",
    choice: int = 0,
    in_place: bool = False,
) -> dict[str, np.ndarray]:
    """Run a plan on poisoned outputs, compare with the reference, give the outputs."""
    spec = standard.get(name)
    feeds = rounded(spec, inputs, {"T": kind, "S": state or kind})
    call = call_of(name, feeds, attributes)
    plan = make_plan(spec, call, H100, choice)
    tensors = {port: to_torch(array) for port, array in feeds.items()}
    first = inputs["query" if name == LINEAR.name else "input"].shape
    sizes = {"B": first[0], "T": first[1 if name == LINEAR.name else 2]}
    outputs = poisoned(plan, sizes)
    if in_place:
        outputs["present_state"] = tensors["past_state"]
    made = {port: to_numpy(value) for port, value in run(plan, tensors, outputs).items()}
    for port, value in spec.reference(feeds, call.attributes).items():
        kinds = {kind, state or kind} if port == "present_state" else {kind}
        coarsest = next(k for k in reversed(TYPES) if k in kinds)
        assert_within(made[port], value, spec.tolerances[PRECISION[coarsest]], port)
    return made


def check_rule(
    rule: str,
    sizes: Mapping[str, int],
    omit: Collection[str] = (),
    attributes: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    inputs = rule_inputs(rule, sizes, omit)
    return check(LINEAR.name, inputs, rule_attributes(rule, sizes, **(attributes or {})), **options)


by_rule = pytest.mark.parametrize("rule", RULES)


def one_node(name: str, feeds: Mapping[str, np.ndarray], **attributes: Any) -> onnx.ModelProto:
    """A standard graph of one node, as any exporter writes it: batch and length symbolic."""
    spec = standard.get(name)
    names = [port.name if port.name in feeds else "" for port in spec.inputs]
    while not names[-1]:
        names.pop()
    node = onnx.helper.make_node(name, names, ["out", "state"], name="layer.0", **attributes)
    values = []
    for port in spec.inputs:
        if port.name not in feeds:
            continue
        array = feeds[port.name]
        symbols = {"B": "batch", "T": "time"}
        shape = [symbols.get(a, n) for a, n in zip(port.axes, array.shape, strict=True)]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        values.append(onnx.helper.make_tensor_value_info(port.name, kind, shape))
    results = [onnx.helper.make_empty_tensor_value_info(result) for result in ("out", "state")]
    graph = onnx.helper.make_graph([node], "g", values, results)
    opset = [onnx.helper.make_opsetid("", standard.OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def assert_onnx_agrees(name: str, inputs: Mapping[str, np.ndarray], **attributes: Any) -> None:
    """ONNX's own evaluator, and ONNX Runtime, compute what our reference says."""
    spec = standard.get(name)
    feeds = rounded(spec, inputs)
    expected = spec.reference(feeds, {**spec.attributes, **attributes})
    model = one_node(name, feeds, **attributes)
    truths = [onnx.reference.ReferenceEvaluator(model).run(None, feeds)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    truths.append(session.run(None, feeds))
    for truth in truths:
        for port, actual in zip(spec.outputs, truth, strict=True):
            assert actual.shape == expected[port.name].shape
            assert nmse(actual, expected[port.name]) < 1e-12, port.name


@by_rule
@pytest.mark.parametrize("group", [1, 3])
def test_linear_attention_is_that_of_onnx(rule: str, group: int) -> None:
    for gates in (2, 2 * 5) if is_gated(rule) else (2,):
        for betas in (1, 2) if is_delta(rule) else (2,):
            sizes = {**SMALL, "B": 2, "T": 7, "G": group, "g": gates, "b": betas}
            for omit in ((), ("past_state",)):
                inputs = rule_inputs(rule, sizes, omit)
                assert_onnx_agrees(LINEAR.name, inputs, **rule_attributes(rule, sizes))
    scaled = rule_attributes(rule, sizes, scale=0.7)
    assert_onnx_agrees(LINEAR.name, inputs, **scaled)


@pytest.mark.parametrize("activation", ["none", "silu", "swish"])
@pytest.mark.parametrize("omit", [(), ("bias",), ("past_state",)])
@pytest.mark.parametrize("time", [2, 9])
def test_convolution_is_that_of_onnx(activation: str, omit: tuple[str, ...], time: int) -> None:
    inputs = CONV.make_inputs(np.random.default_rng(time), {**CONV.sizes, "T": time}, omit)
    assert_onnx_agrees(CONV.name, inputs, activation=activation)


def test_standard_operators_are_none_of_ours() -> None:
    assert standard.names() == ("CausalConvWithState", "LinearAttention")
    assert not set(standard.names()) & set(all_ops())
    assert all(kernels.has_kernels(name) for name in standard.names())


@by_rule
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 130])
def test_every_length(rule: str, time: int) -> None:
    check_rule(rule, {**SHARED, "B": 3 if time < 3 else 1, "T": time})


@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 70])
def test_decay_per_key_channel(time: int) -> None:
    sizes = {**SMALL, "B": 3 if time < 3 else 1, "T": time, "g": 10}
    check_rule("gated_delta", sizes)
    if time in (1, 2, 65):
        check_rule("gated", sizes)


@by_rule
@pytest.mark.parametrize("kind", TYPES[1:])
@pytest.mark.parametrize("state", ["float32", ""])
def test_types(rule: str, kind: str, state: str) -> None:
    """``state`` empty is the type of the inputs, which the standard allows."""
    for sizes in ({**SHARED, "B": 1, "G": 1}, {**SMALL, "T": 1}, {**SMALL, "T": 3}):
        check_rule(rule, sizes, kind=kind, state=state)


@by_rule
def test_every_plan(rule: str) -> None:
    sizes = {**SHARED, "B": 1, "T": 34, "G": 1, "H": 1, "V": 5}
    feeds = rounded(LINEAR, rule_inputs(rule, sizes), {"T": "bfloat16", "S": "float32"})
    call = call_of(LINEAR.name, feeds, rule_attributes(rule, sizes))
    for choice, _ in enumerate(kernels.plans(LINEAR, call, H100)):
        check_rule(rule, sizes, kind="bfloat16", choice=choice)


@by_rule
@pytest.mark.parametrize("time", [1, 4, 40])
def test_state_in_place(rule: str, time: int) -> None:
    sizes = {**SHARED, "B": 1, "G": 1, "T": time}
    check_rule(rule, sizes, in_place=True)
    check_rule(rule, sizes, kind="float16", in_place=True)


@by_rule
def test_prompts_in_pieces(rule: str) -> None:
    sizes = {**SHARED, "B": 1, "H": 1, "T": 60}
    inputs = rule_inputs(rule, sizes)
    attributes = rule_attributes(rule, sizes)
    whole = LINEAR.reference(rounded(LINEAR, inputs), {**LINEAR.attributes, **attributes})
    state, outputs = inputs["past_state"], []
    for begin, end in ((0, 33), (33, 57), (57, 59), (59, 60)):
        piece = {n: a if n == "past_state" else a[:, begin:end] for n, a in inputs.items()}
        made = check(LINEAR.name, {**piece, "past_state": state}, attributes)
        state = made["present_state"]
        outputs.append(made["output"])
    assert nmse(state, whole["present_state"]) < 1e-10
    assert nmse(np.concatenate(outputs, axis=1), whole["output"]) < 1e-10


@by_rule
def test_without_past_and_with_one_beta(rule: str) -> None:
    sizes = {**SHARED, "B": 1, "T": 20, "b": 1}
    for time in (1, 3, 20):
        check_rule(rule, {**sizes, "T": time}, ("past_state",), {"scale": 0.3, "chunk_size": 7})


@pytest.mark.parametrize("rule", ["gated", "gated_delta"])
@pytest.mark.parametrize("decay", [-np.inf, -1e4, 0.25])
def test_resets_and_growth(rule: str, decay: float) -> None:
    for kind in ("float32", "float16"):
        for time in (1, 3, 40):
            sizes = {**SHARED, "B": 1, "G": 1, "T": time}
            inputs = rule_inputs(rule, sizes)
            inputs["decay"][:, ::7] = decay
            check(LINEAR.name, inputs, rule_attributes(rule, sizes), kind=kind)


def test_keys_that_are_all_the_same() -> None:
    """The worst case of a triangular system: powers of it would grow beyond fp32."""
    sizes = {**SHARED, "B": 1, "T": 64}
    inputs = rule_inputs("delta", sizes)
    inputs["key"] = np.broadcast_to(inputs["key"][:, :1], inputs["key"].shape)
    inputs["beta"][:] = 1.0
    for kind in ("float32", "bfloat16"):
        check(LINEAR.name, inputs, rule_attributes("delta", sizes), kind=kind)


def test_wide_keys_go_token_by_token() -> None:
    sizes = {**SMALL, "H": 1, "T": 17, "K": 300, "V": 3}
    check_rule("linear", sizes)
    sizes["K"] = 5000
    with pytest.raises(SsmExportError, match="5000 channels") as error:
        check_rule("linear", sizes)
    assert error.value.code == errors.KERNEL_UNSUPPORTED


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 515, 520])
def test_convolution(kind: str, time: int) -> None:
    sizes = {"B": 3 if time < 64 else 1, "T": time, "D": 19, "K": 4}
    rng = np.random.default_rng(time)
    for activation, omit in (("silu", ()), ("none", ("bias", "past_state"))):
        inputs = CONV.make_inputs(rng, sizes, omit)
        for choice in (0, 1) if kind == "float32" else (0,):
            check(CONV.name, inputs, {"activation": activation}, kind=kind, choice=choice)


@pytest.mark.parametrize("taps", [1, 2, 3, 8])
def test_taps_and_state_in_place(taps: int) -> None:
    for time in (1, 2, 5, 24):
        sizes = {"B": 2, "T": time, "D": 11, "K": taps}
        inputs = CONV.make_inputs(np.random.default_rng(taps), sizes)
        check(CONV.name, inputs, {"activation": "swish"})
        check(CONV.name, inputs, {"activation": "swish"}, in_place=True)


def test_convolution_in_pieces() -> None:
    inputs = CONV.make_inputs(np.random.default_rng(1), {"B": 2, "T": 30, "D": 11, "K": 5})
    whole = CONV.reference(rounded(CONV, inputs), {"activation": "silu"})
    state, outputs = inputs["past_state"], []
    for begin, end in ((0, 2), (2, 3), (3, 19), (19, 30)):
        piece = {**inputs, "input": inputs["input"][:, :, begin:end], "past_state": state}
        made = check(CONV.name, piece, {"activation": "silu"})
        state = made["present_state"]
        outputs.append(made["output"])
    assert nmse(state, whole["present_state"]) < 1e-14
    assert nmse(np.concatenate(outputs, axis=2), whole["output"]) < 1e-10


def test_convolutions_that_no_kernel_takes() -> None:
    inputs = CONV.make_inputs(np.random.default_rng(0), {**CONV.sizes, "K": 9})
    with pytest.raises(SsmExportError, match="9 taps") as error:
        check(CONV.name, inputs, {})
    assert error.value.code == errors.KERNEL_UNSUPPORTED
    with pytest.raises(SsmExportError, match="ndim is 2") as error:
        check(CONV.name, inputs, {"ndim": 2})
    assert error.value.code == errors.KERNEL_UNSUPPORTED


GOOD: dict[str, tuple[Any, ...]] = {
    "query": ("b", "t", 12),
    "key": ("b", "t", 6),
    "value": ("b", "t", 8),
    "past_state": ("b", 2, 3, 4),
    "decay": ("b", "t", 2),
    "beta": ("b", "t", 1),
}


@pytest.mark.parametrize(
    ("change", "attributes", "message"),
    [
        ({"decay": None}, {}, "gated_delta needs 'decay'"),
        ({}, {"update_rule": "delta"}, "delta takes no 'decay'"),
        ({}, {"update_rule": "rwkv"}, "update_rule is 'rwkv'"),
        ({"value": None}, {}, "'value' is missing"),
        ({"sequence_lengths": ("b",)}, {}, "no input 'sequence_lengths'"),
        ({"query": ("b", "t", 4, 3)}, {}, "rank 3"),
        ({}, {"q_num_heads": 3}, "q_num_heads is 3"),
        ({}, {"kv_num_heads": 0}, "kv_num_heads 0"),
        ({"key": ("b", "t", 7)}, {}, "no multiple of 2 heads"),
        ({"key": ("b", "t", 8)}, {}, "'query' says 3, 'key' says 4"),
        ({"past_state": ("b", 3, 3, 4)}, {}, "the number of heads is not one number"),
        ({"value": ("b", "t", "v"), "past_state": None}, {}, "the value width d_v is not static"),
        ({"decay": ("b", "t", None)}, {}, "the last size of 'decay' is not static"),
        ({"decay": ("b", "t", 3)}, {}, "'decay' is 3, it may be 2 or 6"),
        ({"beta": ("b", "t", 6)}, {}, "'beta' is 6, it may be 2 or 1"),
    ],
)
def test_nodes_that_the_standard_forbids(
    change: dict[str, Any], attributes: dict[str, Any], message: str
) -> None:
    shapes = {name: shape for name, shape in {**GOOD, **change}.items() if shape is not None}
    types = dict.fromkeys(shapes, "float16")
    given = {"q_num_heads": 4, "kv_num_heads": 2, **attributes}
    with pytest.raises(SsmExportError, match=message) as error:
        standard.call("LinearAttention", shapes, types, given)
    assert error.value.code == errors.BAD_OPERATOR_CALL
    assert "LinearAttention" in str(error.value)


def test_a_wrong_node_of_a_graph_is_named() -> None:
    def value(name: str) -> ir.Value:
        shape = ir.Shape(GOOD[name])
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=shape)

    ports = [value(name) for name in GOOD]
    node = ir.node(
        "LinearAttention", ports, {"q_num_heads": 3, "kv_num_heads": 2}, name="mixer.7/attention"
    )
    graph = ir.Graph(ports, node.outputs, nodes=[node], opset_imports={"": 27}, name="g")
    with pytest.raises(SsmExportError, match="q_num_heads is 3") as error:
        model_calls(ir.Model(graph, ir_version=12))
    assert error.value.code == errors.BAD_OPERATOR_CALL
    assert error.value.where == "LinearAttention 'mixer.7/attention'"
    assert error.value.fix


def test_types_that_the_standard_forbids() -> None:
    given = {"q_num_heads": 4, "kv_num_heads": 2}
    types = dict.fromkeys(GOOD, "float16")
    assert standard.call("LinearAttention", GOOD, types, given).type("S") == "float16"
    with pytest.raises(SsmExportError, match="inputs of one type differ"):
        standard.call("LinearAttention", GOOD, {**types, "decay": "float32"}, given)
    with pytest.raises(SsmExportError, match="'key' is float64"):
        standard.call("LinearAttention", GOOD, {**types, "key": "float64"}, given)


def test_sizes_come_from_whoever_knows_them() -> None:
    shapes = {**GOOD, "query": ("b", 1, None), "key": ("b", 1, "k"), "value": (None, None, None)}
    call = standard.call(
        "LinearAttention",
        shapes,
        dict.fromkeys(GOOD, "float16"),
        {"q_num_heads": 4, "kv_num_heads": 2},
    )
    assert {letter: call.sizes[letter] for letter in "TqkvoKV"} == {
        "T": 1, "q": 12, "k": 6, "v": 8, "o": 16, "K": 3, "V": 4,
    }  # fmt: skip


def test_calls_of_a_graph_of_another_exporter() -> None:
    types = {"T": "float16", "S": "float16"}
    inputs = rounded(LINEAR, rule_inputs("gated", SMALL, ("past_state",)), types)
    proto = one_node(LINEAR.name, inputs, **rule_attributes("gated", SMALL, chunk_size=32))
    ((node, spec, call),) = model_calls(ir.from_proto(proto))
    assert (node.name, spec.name) == ("layer.0", "LinearAttention")
    assert call == replace(
        call_of(LINEAR.name, inputs, rule_attributes("gated", SMALL)),
        types=types,
    )
    assert call.present == {"query", "key", "value", "decay"}
    conv = rounded(CONV, CONV.make_inputs(np.random.default_rng(0), CONV.sizes, ("bias",)))
    proto = one_node(CONV.name, conv, activation="silu")
    ((node, spec, call),) = model_calls(ir.from_proto(proto))
    assert call == call_of(CONV.name, conv, {"activation": "silu"})
