"""CausalConvWithState of ONNX opset 27: the short depthwise convolution, channels first."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec, Port, causal_conv1d
from ssm_export.ops.spec import AttributeValue, Inputs, Outputs
from ssm_export_plugins.standard import _shapes
from ssm_export_plugins.standard._shapes import Shape

DOC = """
Depthwise causal convolution over time, channels first.

    window        = concat(past_state, input)                  (B, D, K-1+T)
    output_t      = act(bias + sum_k weight[:, 0, k] * window_{t+k})
    present_state = the last K-1 columns of window             (B, D, K-1)

act is x sigmoid(x) for silu and swish. Without past_state the window begins with zeros.
Arithmetic is fp32. Source: ONNX operator CausalConvWithState, version 27.
"""

ACTIVATIONS: Final = ("none", "silu", "swish")


def reference(inputs: Inputs, attributes: Mapping[str, AttributeValue]) -> Outputs:
    """The convolution in float64, token by token."""
    values = {name: np.asarray(value).astype(np.float64) for name, value in inputs.items()}
    x, weight = values["input"], values["weight"][:, 0]
    batch, channels, time = x.shape
    taps = weight.shape[1]
    window = values.get("past_state", np.zeros((batch, channels, taps - 1)))
    bias = values.get("bias", np.zeros(channels))
    output = np.zeros_like(x)
    for t in range(time):
        window = np.concatenate([window, x[:, :, t : t + 1]], axis=2)
        total = (window * weight).sum(axis=2) + bias
        if attributes["activation"] != "none":
            total = total / (1.0 + np.exp(-total))
        output[:, :, t] = total
        window = window[:, :, 1:]
    return {"output": output, "present_state": window}


def make_inputs(
    rng: np.random.Generator,
    sizes: Mapping[str, int],
    omit: Collection[str] = (),
    ragged: bool = False,
) -> Inputs:
    """Valid inputs in float64; ``sizes`` has B, T, D and K. The operator has no lengths."""
    batch, time, channels, taps = (sizes[letter] for letter in "BTDK")
    inputs: Inputs = {
        "input": rng.standard_normal((batch, channels, time)),
        "weight": rng.standard_normal((channels, 1, taps)) / np.sqrt(taps),
        "bias": 0.1 * rng.standard_normal(channels),
        "past_state": rng.standard_normal((batch, channels, taps - 1)),
    }
    return {name: value for name, value in inputs.items() if name not in omit}


def call(
    shapes: Mapping[str, Shape], types: Mapping[str, str], attributes: Mapping[str, Any]
) -> Call:
    """One node as a call; see :func:`ssm_export_plugins.standard.call`."""
    given = {**SPEC.attributes, **attributes}
    if given.pop("ndim", 1) != 1:
        raise SsmExportError(
            errors.KERNEL_UNSUPPORTED,
            f"ndim is {attributes['ndim']}, the kernels convolve over one axis",
            where=SPEC.name,
            fix="pack the other axes into the batch",
        )
    _shapes.check_ports(SPEC, shapes, types)
    if given["activation"] not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        _shapes.refuse(SPEC, f"activation is {given['activation']!r}, it may be {names}")
    past = shapes.get("past_state", (None,) * 3)
    channels = _shapes.known(
        SPEC,
        "the number of channels",
        {
            "'weight'": shapes["weight"][0],
            "'input'": shapes["input"][1],
            "'bias'": shapes.get("bias", (None,))[0],
            "'past_state'": past[1],
        },
    )
    kept = past[2]
    taps = _shapes.known(
        SPEC,
        "the number of taps",
        {
            "'weight'": shapes["weight"][2],
            "'past_state'": kept + 1 if isinstance(kept, int) else None,
        },
    )
    if shapes["weight"][1] not in (1, None) and not isinstance(shapes["weight"][1], str):
        _shapes.refuse(SPEC, f"the middle size of 'weight' is {shapes['weight'][1]}, it must be 1")
    sizes = {"D": channels, "K": taps, "1": 1}
    if shapes["input"][2] == 1:
        sizes["T"] = 1
    kind = _shapes.common_type(SPEC, "T", types)
    return Call(frozenset(shapes), given, sizes, {"T": kind})


SPEC = OpSpec(
    name="CausalConvWithState",
    doc=DOC,
    inputs=(
        Port("input", "BDT", doc="Inputs of the convolution."),
        Port("weight", "D1K", doc="Taps, the current token's last."),
        Port("bias", "D", optional=True, doc="Added before the activation."),
        Port("past_state", "BD-", optional=True, doc="The K-1 inputs before the first token."),
    ),
    outputs=(
        Port("output", "BDT", doc="The convolution, activated."),
        Port("present_state", "BD-", doc="The last K-1 inputs."),
    ),
    attributes={"activation": "none"},
    reference=reference,
    make_inputs=make_inputs,
    bodies={},
    tolerances=causal_conv1d.SPEC.tolerances,
    sizes={"B": 2, "T": 16, "D": 24, "K": 4},
)
