"""CausalConv1d: the short depthwise convolution before a scan, with its last inputs as state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ssm_export.ops import _body as b
from ssm_export.ops import _inputs
from ssm_export.ops.spec import AttributeValue, Call, Inputs, OpSpec, Outputs, Port, Tolerance

DOC = """
Depthwise causal convolution over time, channels last.

    window = concat(past, x)                      (B, K-1+T, D)
    y_t    = act(bias + sum_k weight[:, k] * window_{t+k})
    present = the last K-1 inputs of each row     (B, K-1, D)

Arithmetic is fp32 whatever T is. With sequence_lengths (B,), positions at or beyond a row's
length give zeros and present holds the last K-1 inputs before them. Source: causal-conv1d.
"""


def reference(inputs: Inputs, attributes: Mapping[str, AttributeValue]) -> Outputs:
    """The convolution in float64, token by token."""
    values = _inputs.as_float64(inputs)
    x, weight, past = values["x"], values["weight"], values["past"]
    batch, time, channels = x.shape
    taps = weight.shape[1]
    bias = values.get("bias", np.zeros(channels))
    y = np.zeros_like(x)
    present = np.zeros_like(past)
    for row, length in enumerate(_inputs.row_lengths(inputs, batch, time)):
        window = past[row]
        for t in range(length):
            window = np.concatenate([window, x[row, t : t + 1]])
            total = bias.copy()
            for tap in range(taps):
                total = total + weight[:, tap] * window[tap]
            y[row, t] = _inputs.silu(total) if attributes["activation"] == "silu" else total
            window = window[1:]
        present[row] = window
    return {"y": y, "present": present}


def make_inputs(
    rng: np.random.Generator,
    sizes: Mapping[str, int],
    omit: Collection[str] = (),
    ragged: bool = False,
) -> Inputs:
    """Valid inputs in float64; ``sizes`` has B, T, D and K."""
    batch, time, channels, taps = (sizes[letter] for letter in "BTDK")
    inputs: Inputs = {
        "x": rng.standard_normal((batch, time, channels)),
        "weight": rng.standard_normal((channels, taps)) / np.sqrt(taps),
        "bias": 0.1 * rng.standard_normal(channels),
        "past": rng.standard_normal((batch, taps - 1, channels)),
    }
    if ragged:
        inputs["sequence_lengths"] = _inputs.make_lengths(rng, batch, time)
    return {name: value for name, value in inputs.items() if name not in omit}


def _activate(op: Any, call: Call, y: Any) -> Any:
    return b.silu(op, y) if call.attributes["activation"] == "silu" else y


def step(
    op: Any, call: Call, x: Any, weight: Any, bias: Any, past: Any, lengths: Any
) -> tuple[Any, Any]:
    """One token: the K rows of the window times the taps, summed."""
    type_ = call.type("T")
    window = b.label(op.Concat(past, x, axis=1), "window")
    taps = b.label(op.Transpose(b.to_fp32(op, weight, type_), perm=[1, 0]), "taps")
    y = op.ReduceSum(op.Mul(b.to_fp32(op, window, type_), taps), [1], keepdims=1)
    if bias is not None:
        y = op.Add(y, b.to_fp32(op, bias, type_))
    y = _activate(op, call, y)
    present = op.Slice(window, [1], [call.sizes["K"]], [1])
    if lengths is None:
        return b.from_fp32(op, y, type_), present
    valid = b.has_token(op, lengths, [1, 2])
    y = b.from_fp32(op, b.keep(op, valid, y), type_)
    return y, op.Where(valid, present, past)


def chunked(
    op: Any, call: Call, x: Any, weight: Any, bias: Any, past: Any, lengths: Any
) -> tuple[Any, Any]:
    """Any number of tokens: K shifted copies of the window times their taps, summed.

    As fast as a depthwise Conv between transposes at 512 tokens and several times faster at few,
    and one fused kernel where the runtime fuses elementwise operators.
    """
    type_, taps = call.type("T"), call.sizes["K"]
    window = b.label(op.Concat(past, x, axis=1), "window")
    rows = op.Transpose(b.to_fp32(op, weight, type_), perm=[1, 0])
    rows = op.Split(rows, axis=0, num_outputs=taps, _outputs=taps) if taps > 1 else [rows]
    y = op.Mul(b.to_fp32(op, x, type_), rows[-1])
    if bias is not None:
        y = op.Add(y, b.to_fp32(op, bias, type_))
    length = b.length_of(op, x)
    wide = b.to_fp32(op, window, type_)
    for tap in range(taps - 1):
        shifted = b.label(op.Slice(wide, [tap], op.Add(length, [tap]), [1]), "shifted")
        y = op.Add(y, op.Mul(shifted, rows[tap]))
    y = _activate(op, call, y)
    if lengths is None:
        return b.from_fp32(op, y, type_), op.Slice(window, length, [b.TO_THE_END], [1])
    valid = op.Unsqueeze(b.valid_positions(op, lengths, length), [2])
    y = b.from_fp32(op, b.keep(op, valid, y), type_)
    last = op.Add(b.as_int64(op, op.Unsqueeze(lengths, [1])), list(range(taps - 1)))
    return y, op.GatherND(window, op.Unsqueeze(last, [2]), batch_dims=1)


SPEC = OpSpec(
    name="CausalConv1d",
    doc=DOC,
    inputs=(
        Port("x", "BTD", doc="Inputs of the convolution."),
        Port("weight", "DK", doc="Taps, the current token's last."),
        Port("bias", "D", optional=True, doc="Added before the activation."),
        Port("past", "B-D", doc="The K-1 inputs before the first token."),
        Port("sequence_lengths", "B", "int32", optional=True, doc="Valid tokens of each row."),
    ),
    outputs=(
        Port("y", "BTD", doc="The convolution, activated."),
        Port("present", "B-D", doc="The last K-1 inputs."),
    ),
    attributes={"activation": "silu"},
    reference=reference,
    make_inputs=make_inputs,
    bodies={"step": step, "chunked": chunked},
    tolerances={
        "fp32": Tolerance(3e-4, 1e-3, 1e-10),
        "fp16": Tolerance(3e-3, 5e-3, 2e-7),
        "bf16": Tolerance(1e-2, 5e-2, 1e-5),
    },
    sizes={"B": 2, "T": 16, "D": 24, "K": 4},
)
