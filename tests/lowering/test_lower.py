"""Lowered graphs: what is in them, and that they compute what the canonical graph does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from one_call import FULL, assert_correct, make_call, proto, rounded, run, session

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.lowering import LOWERINGS, attach_bodies, lower
from ssm_export.ops import OpSpec, all_ops
from ssm_export.ops.spec import DOMAIN

OPS = list(all_ops().values())
TYPES = [("float32", "float32"), ("float16", "float32"), ("float16", "float16")]
by_name = pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
by_form = pytest.mark.parametrize("form", ["step", "prefill"])


def _feeds(spec: OpSpec, types: dict[str, str] = FULL, **options: Any) -> dict[str, np.ndarray]:
    omit, ragged = options.pop("omit", ()), options.pop("ragged", False)
    rng = np.random.default_rng(5)
    return rounded(spec, spec.make_inputs(rng, {**spec.sizes, **options}, omit, ragged), types)


def _reloaded(model: ir.Model) -> ir.Model:
    return ir.from_proto(onnx.ModelProto.FromString(proto(model).SerializeToString()))


@by_name
@by_form
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize("ragged", [False, True])
def test_lowered_graph_is_correct(
    spec: OpSpec, form: str, lowering: str, types: tuple[str, str], ragged: bool
) -> None:
    kinds = dict(zip("TS", types, strict=True))
    feeds = _feeds(spec, kinds, T=1 if form == "step" else 131, B=3, ragged=ragged)
    lowered = lower(_reloaded(make_call(spec, feeds, form)), lowering)
    assert_correct(spec, run(lowered.model, spec, feeds), feeds, types=kinds)


@pytest.mark.parametrize("lowering", LOWERINGS)
@by_form
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_and_odd_heads(lowering: str, form: str, groups: int) -> None:
    spec = all_ops()["SsdScan"]
    sizes = {"T": 1 if form == "step" else 70, "H": 4, "P": 80, "N": 96, "G": groups}
    for omit in ((), ("D", "dt_bias")):
        feeds = _feeds(spec, omit=omit, **sizes)
        model = make_call(spec, feeds, form, dt_min=0.003, dt_max=0.2)
        results = run(lower(model, lowering).model, spec, feeds)
        assert_correct(spec, results, feeds, {"dt_min": 0.003, "dt_max": 0.2})


@by_name
@pytest.mark.parametrize("lowering", LOWERINGS)
@by_form
def test_poisoned_padding(spec: OpSpec, lowering: str, form: str) -> None:
    feeds = _feeds(spec, T=1 if form == "step" else 70, B=4, ragged=True)
    for port in spec.inputs:
        if "T" in port.axes and port.name in feeds:
            for row, length in enumerate(feeds["sequence_lengths"]):
                feeds[port.name][row, length:] = np.nan
    results = run(lower(make_call(spec, feeds, form), lowering).model, spec, feeds)
    assert_correct(spec, results, feeds)
    np.testing.assert_array_equal(results["present"][-1], feeds["past"][-1])


@by_name
@by_form
@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_native_holds_standard_operators_only(
    spec: OpSpec, form: str, types: tuple[str, str]
) -> None:
    feeds = _feeds(spec, dict(zip("TS", types, strict=True)), T=1, ragged=True)
    lowered = lower(make_call(spec, feeds, form), "native")
    nodes = list(ir.traversal.RecursiveGraphIterator(lowered.model.graph))
    assert {node.domain for node in nodes} == {""}
    assert not lowered.model.functions
    assert set(lowered.model.graph.opset_imports) == {""}
    assert lowered.counts == {f"inlined {spec.name}": 1}
    assert "CastLike" not in {node.op_type for node in nodes}
    floats = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    casts = [ir.DataType(n.attributes["to"].as_int()) for n in nodes if n.op_type == "Cast"]
    if set(types) == {"float32"}:
        assert not floats & set(casts)


@by_name
def test_inlined_names_tell_the_call(spec: OpSpec) -> None:
    lowered = lower(make_call(spec, _feeds(spec, T=5), "prefill"), "native")
    names = []
    for node in ir.traversal.RecursiveGraphIterator(lowered.model.graph):
        names += [value.name for value in node.outputs]
        if node.op_type != "Constant":
            assert node.name is not None
            assert node.name.startswith(f"layer/{spec.name}/")
    assert len(names) == len(set(names))


@by_name
def test_equal_constants_are_one(spec: OpSpec) -> None:
    lowered = lower(make_call(spec, _feeds(spec, T=5), "prefill"), "native")
    constants = [
        (node.attributes["value"].as_tensor().dtype, node.attributes["value"].as_tensor().tobytes())
        for node in lowered.model.graph
        if node.op_type == "Constant"
    ]
    shapes = [n.attributes["value"].as_tensor().shape for n in lowered.model.graph if not n.inputs]
    keys = list(zip(constants, map(str, shapes), strict=True))
    assert len(keys) == len(set(keys))


def test_lowering_leaves_the_canonical_graph_alone() -> None:
    spec = all_ops()["SsdScan"]
    model = make_call(spec, _feeds(spec, T=5), "prefill")
    before = proto(model).SerializeToString(deterministic=True)
    for lowering in LOWERINGS:
        lower(model, lowering)
    assert proto(model).SerializeToString(deterministic=True) == before


@by_form
def test_ort_uses_linear_attention(form: str) -> None:
    spec = all_ops()["SsdScan"]
    lowered = lower(make_call(spec, _feeds(spec, T=1), form), "ort")
    assert lowered.counts == {"SsdScan to LinearAttention": 1}
    assert [n.op_type for n in lowered.model.graph if n.domain] == ["LinearAttention"]


@by_form
@pytest.mark.parametrize("name", ["CausalConv1d", "SelectiveScan"])
def test_ort_says_why_it_uses_no_fused_operator(name: str, form: str) -> None:
    spec = all_ops()[name]
    lowered = lower(make_call(spec, _feeds(spec, T=1), form), "ort")
    (count,) = lowered.counts.values()
    assert count == 1
    (note,) = lowered.notes
    assert note.startswith(f"{name} ")
    assert not [node for node in lowered.model.graph if node.domain]


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_external_weights_are_not_read(lowering: str, tmp_path: Path) -> None:
    """The weights file does not even exist."""
    spec = all_ops()["CausalConv1d"]
    feeds = _feeds(spec, T=5)
    model = make_call(spec, feeds, "prefill")
    weight = next(value for value in model.graph.inputs if value.name == "weight")
    model.graph.inputs.remove(weight)
    tensor = ir.ExternalTensor(
        "weights.data", 0, feeds["weight"].nbytes, ir.DataType.FLOAT,
        shape=ir.Shape(feeds["weight"].shape), name="weight", base_dir=str(tmp_path),
    )  # fmt: skip
    weight.const_value = tensor
    model.graph.register_initializer(weight)
    lowered = lower(model, lowering)
    kept = lowered.model.graph.initializers["weight"]
    assert kept.const_value is tensor
    location = ir.to_proto(lowered.model).graph.initializer[0].external_data[0]
    assert location.value == "weights.data"


def test_calls_that_differ_get_functions_of_their_own() -> None:
    """Two convolutions, one without bias and activation, in one graph."""
    spec = all_ops()["CausalConv1d"]
    feeds = _feeds(spec, T=7)
    model = make_call(spec, feeds, "prefill")
    first = model.graph[-1]
    second = ir.node(
        spec.name,
        [first.outputs[0], first.inputs[1], None, first.inputs[3]],
        attributes={"activation": "none"},
        domain=DOMAIN,
        num_outputs=2,
        name="layer/second",
    )
    for value, like, name in zip(second.outputs, first.outputs, ("y_two", "p_two"), strict=True):
        value.name, value.type, value.shape = name, like.type, like.shape
    model.graph.append(second)
    model.graph.outputs.extend(second.outputs)
    attach_bodies(model, "prefill")
    assert len(model.functions) == 2
    one = spec.reference(feeds, {"activation": "silu"})
    inner = {"x": one["y"], "weight": feeds["weight"], "past": feeds["past"]}
    two = spec.reference(inner, {"activation": "none"})
    expected = [one["y"], one["present"], two["y"], two["present"]]
    for made in (model, lower(model, "native").model, lower(model, "ort").model):
        for actual, wanted in zip(session(made).run(None, feeds), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_equal_calls_share_one_function() -> None:
    spec = all_ops()["CausalConv1d"]
    model = make_call(spec, _feeds(spec, T=7), "prefill")
    first = model.graph[-1]
    model.graph.append(
        ir.node(
            spec.name,
            [first.outputs[0], *first.inputs[1:]],
            attributes=dict(first.attributes),
            domain=DOMAIN,
            num_outputs=2,
        )
    )
    attach_bodies(model, "prefill")
    assert len(model.functions) == 1


def _refused(change: Any, spec: OpSpec, form: str = "prefill") -> SsmExportError:
    model = make_call(spec, _feeds(spec, T=7), "prefill")
    change(model, {value.name: value for value in model.graph.inputs}, model.graph[-1])
    with pytest.raises(SsmExportError) as caught:
        attach_bodies(model, form)
    assert caught.value.code is errors.BAD_OPERATOR_CALL
    return caught.value


def test_bad_calls_are_named() -> None:
    ssd = all_ops()["SsdScan"]

    def rank(model: Any, inputs: Any, node: Any) -> None:
        inputs["dt"].shape = ir.Shape(["batch", "time", 4, 1])

    assert "'dt' has rank 4, expected (B,T,H)" in str(_refused(rank, ssd))

    def kind(model: Any, inputs: Any, node: Any) -> None:
        inputs["B"].type = ir.TensorType(ir.DataType.FLOAT16)

    assert "'B' is float16, expected float32" in str(_refused(kind, ssd))

    def state(model: Any, inputs: Any, node: Any) -> None:
        inputs["past"].type = ir.TensorType(ir.DataType.BFLOAT16)

    assert "'past' cannot be bfloat16" in str(_refused(state, ssd))

    def size(model: Any, inputs: Any, node: Any) -> None:
        inputs["A"].shape = ir.Shape([5])

    assert "says H=5, another says 4" in str(_refused(size, ssd))

    def groups(model: Any, inputs: Any, node: Any) -> None:
        for name in "BC":
            inputs[name].shape = ir.Shape(["batch", "time", 3, 16])

    assert "4 heads cannot be split into 3 groups" in str(_refused(groups, ssd))

    def missing(model: Any, inputs: Any, node: Any) -> None:
        node.replace_input_with(1, None)

    assert "its input 'dt' is missing" in str(_refused(missing, ssd))

    def unknown(model: Any, inputs: Any, node: Any) -> None:
        node.attributes["speed"] = ir.AttrInt64("speed", 3)

    assert "no attribute 'speed'" in str(_refused(unknown, ssd))

    def time(model: Any, inputs: Any, node: Any) -> None:
        inputs["x"].shape = ir.Shape(["batch", 3, 4, 8])

    assert "says T=3" in str(_refused(time, ssd, "step"))

    def dynamic(model: Any, inputs: Any, node: Any) -> None:
        for name in ("weight", "past"):
            inputs[name].shape = ir.Shape([None] * len(inputs[name].shape))

    error = _refused(dynamic, all_ops()["CausalConv1d"])
    assert "axis K is not a known integer" in str(error)


def test_unknown_lowering_and_unknown_operator_are_refused() -> None:
    spec = all_ops()["CausalConv1d"]
    model = make_call(spec, _feeds(spec, T=7), "prefill")
    with pytest.raises(SsmExportError) as caught:
        lower(model, "tvm")
    assert caught.value.code is errors.BAD_OPTION
    model.functions.clear()
    for lowering in LOWERINGS:
        with pytest.raises(SsmExportError) as caught:
            lower(model, lowering)
        assert caught.value.code is errors.LOWERING_FAILED
    model.graph[-1].op_type = "Nothing"
    with pytest.raises(SsmExportError, match="no operator 'Nothing'"):
        attach_bodies(model, "prefill")
