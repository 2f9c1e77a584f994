"""Operators that stand for several nodes of a canonical graph.

No graph of a bundle holds them and they have no bodies: the ``plugin`` lowering puts them where
one kernel computes what the nodes computed. Their contract is that of the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from ssm_export.ops import _inputs, causal_conv1d, ssd_scan
from ssm_export.ops.spec import AttributeValue, Inputs, OpSpec, Outputs, Port, Tolerance

DOC = """
The short convolution of Mamba-2 and its scan: CausalConv1d of D = H P + 2 G N channels, whose
outputs are x (B, T, H, P), B and C (B, T, G, N) of SsdScan, in this order.

    xBC'         = CausalConv1d(xBC, weight, bias, past_conv)           (B, T, D)
    x, B, C      = split(xBC', [H P, G N, G N])
    y            = SsdScan(x, dt, A, B, C, D, dt_bias, past_ssm)        (B, T, H, P)

G follows from the sizes. Arithmetic is fp32 whatever T and S are; what the convolution gives may
be rounded to T. Source: state-spaces/mamba mamba2.py.
"""


def groups(channels: int, heads: int, width: int, states: int) -> int:
    """How many groups of B and C are in so many channels; 0 where they do not divide."""
    rest, remainder = divmod(channels - heads * width, 2 * states)
    return rest if rest > 0 and remainder == 0 and heads % rest == 0 else 0


def reference(inputs: Inputs, attributes: Mapping[str, AttributeValue]) -> Outputs:
    """Both references in float64, one after the other, with nothing rounded between."""
    conv: Inputs = {"x": inputs["xBC"], "past": inputs["past_conv"]}
    conv |= _those(inputs, "weight", "bias", "sequence_lengths")
    convolved = causal_conv1d.reference(conv, attributes)
    batch, time, channels = inputs["xBC"].shape
    _, heads, width, states = inputs["past_ssm"].shape
    shared = groups(channels, heads, width, states)
    cuts = np.cumsum([heads * width, shared * states])
    x, B, C = np.split(convolved["y"], cuts, axis=2)
    scan: Inputs = {
        "x": x.reshape(batch, time, heads, width),
        "B": B.reshape(batch, time, shared, states),
        "C": C.reshape(batch, time, shared, states),
        "past": inputs["past_ssm"],
    }
    scan |= _those(inputs, "dt", "A", "D", "dt_bias", "sequence_lengths")
    scanned = ssd_scan.reference(scan, attributes)
    return {
        "y": scanned["y"],
        "present_conv": convolved["present"],
        "present_ssm": scanned["present"],
    }


def _those(inputs: Inputs, *names: str) -> Inputs:
    return {name: inputs[name] for name in names if name in inputs}


def make_inputs(
    rng: np.random.Generator,
    sizes: Mapping[str, int],
    omit: Collection[str] = (),
    ragged: bool = False,
) -> Inputs:
    """Valid inputs in float64; ``sizes`` has B, T, H, P, G, N and K."""
    channels = sizes["H"] * sizes["P"] + 2 * sizes["G"] * sizes["N"]
    conv = causal_conv1d.make_inputs(rng, {**sizes, "D": channels})
    scan = ssd_scan.make_inputs(rng, sizes)
    inputs: Inputs = {
        "xBC": conv["x"],
        "weight": conv["weight"],
        "bias": conv["bias"],
        "past_conv": conv["past"],
        **{name: scan[name] for name in ("dt", "A", "D", "dt_bias")},
        "past_ssm": scan["past"],
    }
    if ragged:
        inputs["sequence_lengths"] = _inputs.make_lengths(rng, sizes["B"], sizes["T"])
    return {name: value for name, value in inputs.items() if name not in omit}


CONV_SSD_SCAN = OpSpec(
    name="ConvSsdScan",
    doc=DOC,
    inputs=(
        Port("xBC", "BTD", doc="Inputs of the convolution."),
        Port("weight", "DK", doc="Taps, the current token's last."),
        Port("bias", "D", optional=True, doc="Added before the activation."),
        Port("past_conv", "B-D", doc="The K-1 inputs before the first token."),
        Port("dt", "BTH", doc="Time steps before bias, softplus and clamp."),
        Port("A", "H", "float32", doc="Negative decay rates."),
        Port("D", "H", "float32", optional=True, doc="Skip weights."),
        Port("dt_bias", "H", "float32", optional=True, doc="Added to dt before the softplus."),
        Port("past_ssm", "BHPN", "S", doc="State before the first token."),
        Port("sequence_lengths", "B", "int32", optional=True, doc="Valid tokens of each row."),
    ),
    outputs=(
        Port("y", "BTHP", doc="Outputs."),
        Port("present_conv", "B-D", doc="The last K-1 inputs."),
        Port("present_ssm", "BHPN", "S", doc="State after the last token."),
    ),
    attributes={
        "activation": "silu",
        "dt_softplus": 1,
        "dt_min": 0.0,
        "dt_max": float("inf"),
    },
    reference=reference,
    make_inputs=make_inputs,
    bodies={},
    # The mean-square errors of SsdScan four times: not only y is rounded, but x, B and C before.
    tolerances={
        "fp32": Tolerance(3e-4, 1e-3, 1e-10),
        "fp16": Tolerance(5e-3, 1e-2, 8e-7),
        "bf16": Tolerance(1e-2, 5e-2, 4e-5),
    },
    sizes={"B": 2, "T": 16, "H": 4, "P": 8, "G": 2, "N": 16, "K": 4},
)
