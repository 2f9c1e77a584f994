"""Typed graphs against the simulation, the simulation against numpy, and what may not change."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from families import FAMILIES
from onnx.reference.op_run import OpRun
from small_models import (
    Small,
    feeds_of,
    planted,
    run_plain,
    run_reference,
    self_contained,
    worst,
)

from ssm_export import errors
from ssm_export.bundle import FORMS
from ssm_export.errors import SsmExportError
from ssm_export.ops.spec import DOMAIN
from ssm_export.quantization.apply import Simulated, Writer, write_plan
from ssm_export.quantization.recipe import Rule, read_recipe, recipe_names
from ssm_export.quantization.typed import Typed

RECIPES = [name for name in recipe_names() if read_recipe(name).mixed is None]
ROUNDED = [name for name in RECIPES if read_recipe(name).static_activations]
NARROW = {"nvfp4": "float4", "mxfp8": "float8"}
"""Formats that ONNX Runtime's CPU has no kernels for; ONNX's evaluator runs those."""
SAME = 1e-5
"""Relative L2 of two spellings of one plan: float32 rounding, and no code off by one."""
CODES = 2e-3
"""The same where products are summed in another order, so that a few codes are off by one."""


@pytest.fixture(scope="module")
def small(bundle_of, tmp_path_factory):
    made = {}

    def make(family: str, **options) -> Small:
        key = f"{family}-{sorted(options.items())}"
        if key not in made:
            made[key] = Small(bundle_of(family, **options), tmp_path_factory.mktemp("work") / "w")
        return made[key]

    return make


@pytest.fixture(scope="module")
def spelled(small):
    """``spelled(family, recipe)``: the plan and its writer, made once."""
    made = {}

    def make(family: str, recipe: str):
        if (family, recipe) not in made:
            made[family, recipe] = planted(small(family), recipe)
        return made[family, recipe]

    return make


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("form", FORMS)
def test_typed_graphs_compute_what_the_simulation_computes(spelled, family, recipe, form):
    found, graph = spelled(family, recipe)
    feeds = feeds_of(found.bundle, form)
    run = run_reference if recipe in NARROW else run_plain
    floats = run(graph(form, None), feeds)
    simulated = run(graph(form, Simulated()), feeds)
    typed = run(graph(form, Typed()), feeds)
    assert worst(typed, simulated) < SAME
    assert worst(simulated, floats) > 100 * SAME  # they are quantized, and not by nothing


class RoundTrip(OpRun):
    """A value to codes and back, from the definition of the format."""

    op_domain = "test"

    def _run(self, x, rotate=0, scheme="", scale=1.0, factors=None):
        x = x.astype(np.float64)
        if rotate:
            signs = [[(-1) ** (i & j).bit_count() for j in range(rotate)] for i in range(rotate)]
            whole = np.kron(np.eye(x.shape[-1] // rotate), np.array(signs) / np.sqrt(rotate))
            x = (x @ whole).astype(np.float32).astype(np.float64)
        if scheme != "float":
            step = scale * (1.0 if factors is None else factors.astype(np.float64))
            if scheme == "int8":
                x = np.clip(np.rint(x / step), -128, 127) * step
            else:
                inside = np.clip(x / step, -448, 448).astype(np.float32)
                x = inside.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * step
        return (x.astype(np.float32),)


def weight_by_hand(tensor) -> np.ndarray:
    """Codes times scales, the scales repeated over what they are for."""
    codes = tensor.values.astype(np.float64)
    scale = np.asarray(tensor.scale).astype(np.float64) * tensor.global_scale
    if tensor.block:
        return codes * np.repeat(scale, tensor.block, axis=tensor.axis)
    if scale.ndim:
        scale = scale.reshape([-1 if axis == tensor.axis else 1 for axis in range(codes.ndim)])
    return codes * scale


def by_hand(found, model: ir.Model) -> ir.Model:
    """The float graph with numpy in the place of everything that a plan says."""
    nodes = {node.name: node for node in model.graph}
    values = Writer(model.graph).values
    for plan in found.plan.activations:
        made = ir.node(
            "RoundTrip",
            [values[plan.value]],
            attributes={"rotate": plan.rotate, "scheme": plan.scheme, "scale": plan.scale},
            domain="test",
            name=f"by hand {plan.name}",
        )
        made.outputs[0].name = made.name
        made.outputs[0].type = values[plan.value].type
        made.outputs[0].shape = values[plan.value].shape
        if plan.factors is not None:
            made.attributes["factors"] = ir.AttrTensor("factors", ir.tensor(plan.factors))
        first = min((nodes[node] for node, _ in plan.uses), key=list(model.graph).index)
        model.graph.insert_before(first, made)
        for node, position in plan.uses:
            nodes[node].replace_input_with(position, made.outputs[0])
    for name, key in found.plan.weights.items():
        weight = next(site.weight for site in found.sites.weights if site.name == name)
        content = weight_by_hand(found.tensors.get(key)).astype(np.float32)
        model.graph.initializers[weight].const_value = ir.tensor(content, name=weight)
    model.graph.opset_imports["test"] = 1
    return model


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_simulation_computes_the_plan(small, spelled, family, recipe):
    found, graph = spelled(family, recipe)
    feeds = feeds_of(found.bundle, "step")
    want = self_contained(by_hand(found, small(family).graph("step")), "step")
    want = run_reference(want, feeds, [RoundTrip])
    got = run_reference(graph("step", Simulated()), feeds)
    floats = run_reference(graph("step", None), feeds)
    assert worst(got, want) < CODES < worst(got, floats)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("form", FORMS)
def test_the_file_holds_codes_and_no_float_weight_of_them(spelled, family, recipe, form):
    found, graph = spelled(family, recipe)
    proto = graph(form, Typed())
    onnx.checker.check_model(proto, full_check=True)
    opset = {entry.domain: entry.version for entry in proto.opset_import}[""]
    assert opset == (23 if recipe == "nvfp4" else 21)
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    schemes = {key.site: key.scheme for key in found.plan.weights.values()}
    assert schemes
    for site in found.sites.weights:
        if site.name not in schemes:
            assert held[site.weight].data_type == onnx.TensorProto.FLOAT
            continue
        assert site.weight not in held
        codes = held[f"{site.weight}.{schemes[site.name]}"]
        assert tuple(codes.dims) == site.shape
        assert codes.data_type != onnx.TensorProto.FLOAT
        assert f"{site.weight}.scale" in held
    assert all(name and not name.isdigit() for name in held)
    names = [node.name for node in proto.graph.node]
    assert all(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("recipe", RECIPES)
def test_scans_dt_a_and_convolutions_stay_as_they_are(small, spelled, family, recipe):
    _, graph = spelled(family, recipe)
    for form in FORMS:
        before = {node.name: node for node in small(family).graph(form).graph}
        proto = graph(form, Typed())
        calls = [node for node in proto.graph.node if node.domain == DOMAIN]
        assert {node.op_type for node in calls} > {"CausalConv1d"}
        for node in calls:
            old = before[node.name]
            inputs = ["" if value is None else value.name for value in old.inputs]
            free = {0, 3, 4} if node.op_type != "CausalConv1d" else set()
            assert len(node.input) == len(inputs)
            for position, (now, was) in enumerate(zip(node.input, inputs, strict=True)):
                assert now == was or (position in free and "scan" in str(read_recipe(recipe).rules))
        held = {tensor.name: tensor for tensor in proto.graph.initializer}
        floats = small(family).graph(form).graph.initializers
        for name in floats:
            if any(part in name for part in ("A_log", ".D", "conv1d", "dt_bias", "norm", ".A")):
                content = onnx.numpy_helper.to_array(held[name])
                np.testing.assert_array_equal(content, floats[name].const_value.numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_rotation_and_grouping_alone_change_nothing(small, family):
    """Rotated float weights of 16-bit codes: H H = 1, and factors go out as they came in."""
    made = small(family)
    name = next(n for n in made.sites.names() if n.endswith("out_proj"))
    found = made.planned({name: Rule((name,), weights="int8", rotate=16)})
    activation = found.plan.activations[0]
    assert (activation.scheme, activation.rotate) == ("float", 16)
    site = found.tensors.site(name)
    exact = found.tensors.read(name)

    class Exact:
        """Codes of any precision: the rotated weight itself."""

        def weight(self, writer, site, tensor):
            blocks = exact.reshape(-1, 16, exact.shape[1]).astype(np.float64)
            signs = [[(-1) ** (i & j).bit_count() for j in range(16)] for i in range(16)]
            turned = (np.array(signs) / 4 @ blocks).reshape(exact.shape).astype(np.float32)
            value = writer.graph.initializers[site.weight]
            value.const_value = ir.tensor(turned, name=site.weight)

    for form in FORMS:
        model = made.graph(form)
        write_plan(model, found.plan, found.tensors, Exact())
        assert site.weight in model.graph.initializers
        feeds = feeds_of(found.bundle, form)
        got = run_plain(self_contained(model, form), feeds)
        want = run_plain(self_contained(made.graph(form), form), feeds)
        assert worst(got, want) < 2e-6


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("recipe", ["w8a16", "w4a16", "w8a8", "fp8"])
def test_scales_have_the_type_of_the_activations(small, family, precision, recipe):
    found, graph = planted(small(family, precision=precision), recipe)
    kind = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    proto = graph("step", Typed())
    onnx.checker.check_model(proto, full_check=True)
    scales = [t for t in proto.graph.initializer if t.name.endswith(("scale", "groups"))]
    assert len(scales) >= len(found.plan.weights)
    assert {tensor.data_type for tensor in scales} == {kind}
    for key in found.plan.weights.values():
        stored = next(t for t in scales if t.name == f"{found.tensors.site(key.site).weight}.scale")
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(stored).astype(np.float32),
            np.asarray(found.tensors.get(key).scale, np.float32),
        )


def test_scales_below_fp16_are_refused_by_name(small, family):
    made = small(family, precision="fp16")
    rules = made.rules("w8a16")
    found = made.planned(rules)
    name, key = next((n, k) for n, k in found.plan.weights.items() if n.endswith("out_proj"))
    found.tensors.drop(key)
    read = found.tensors.read
    found.tensors.read = lambda asked: read(asked) * np.float32(1e-5 if asked == name else 1)
    with pytest.raises(SsmExportError) as error:
        write_plan(made.graph(), found.plan, found.tensors, Typed())
    assert error.value.code == errors.SCALE_UNDERFLOW
    assert name in str(error.value) and "bf16" in str(error.value)


@pytest.mark.parametrize("recipe", ROUNDED)
def test_small_activations_underflow_in_fp16_and_are_named(small, family, recipe):
    from ssm_export.quantization.plan import make_plan, weight_keys

    made = small(family, precision="fp16")
    found = made.planned(recipe)
    for seen in found.statistics.values.values():
        seen.histogram.reach *= 2.0**-30
        seen.histogram.largest *= 2.0**-30
        seen.channels[...] *= np.float32(2.0**-30)
    keys, _ = weight_keys(found.rules, found.sites, (128,))
    with pytest.raises(SsmExportError) as error:
        make_plan(found.rules, found.sites, keys, found.statistics, "fp16")
    assert error.value.code == errors.SCALE_UNDERFLOW
    assert "backbone.layers.0.mixer" in str(error.value)
    make_plan(found.rules, found.sites, keys, found.statistics, "bf16")
