"""TensorRT-RTX reads and builds the native form of every operator; no GPU is needed for that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from one_call import make_call, rounded

from ssm_export.lowering import lower
from ssm_export.ops import OpSpec, all_ops

OPS = list(all_ops().values())


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("form", ["step", "prefill"])
@pytest.mark.parametrize("types", [("float32", "float32"), ("float16", "float32")], ids="-".join)
def test_engine_builds(spec: OpSpec, form: str, types: tuple[str, str]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx")
    rng = np.random.default_rng(0)
    sizes = {**spec.sizes, "T": 1 if form == "step" else 70}
    feeds = rounded(
        spec, spec.make_inputs(rng, sizes, (), True), dict(zip("TS", types, strict=True))
    )
    native = lower(make_call(spec, feeds, form), "native").model
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse(ir.to_proto(native).SerializeToString())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    axes = {port.name: port.axes for port in spec.inputs}
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape:
            ranges = [{"B": 1, "T": 1}, {"B": 1, "T": 64}, {"B": 4, "T": 512}]
            letters = axes[tensor.name]
            profile.set_shape(
                tensor.name,
                *(
                    tuple(r[a] if n < 0 else n for a, n in zip(letters, shape, strict=True))
                    for r in ranges
                ),
            )
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
