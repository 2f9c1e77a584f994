"""LinearAttention of ONNX opset 27: four update rules of a matrix state, with shared heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np

from ssm_export.ops import Call, OpSpec, Port, ssd_scan
from ssm_export.ops.spec import AttributeValue, Inputs, Outputs
from ssm_export_plugins.standard import _shapes
from ssm_export_plugins.standard._shapes import Shape

DOC = """
Linear attention with a state S (d_k, d_v) per key/value head; one query head of each Hq / H reads
it. Heads are packed into the last axis: query (B, T, Hq d_k), key (B, T, H d_k), value and output
(B, T, H d_v) and (B, T, Hq d_v), states (B, H, d_k, d_v).

    linear       S_t = S_{t-1} + k_t v_t^T
    gated        S_t = e^{g_t} S_{t-1} + k_t v_t^T
    delta        S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T
    gated_delta  S_t = S' + beta_t k_t (v_t - S'^T k_t)^T  with  S' = e^{g_t} S_{t-1}
    output_t     = scale S_t^T q_t                              (the state after the token)

g is decay, one number per head (B, T, H) or per key channel (B, T, H d_k), in which case it
multiplies rows of S; beta is (B, T, H) or (B, T, 1). scale 0 means 1/sqrt(d_k). Without
past_state S starts at zero and present_state has the type of query. Arithmetic is fp32. Source:
ONNX operator LinearAttention, version 27.
"""

RULES: Final = ("linear", "gated", "delta", "gated_delta")


def is_gated(rule: AttributeValue) -> bool:
    """Whether the rule takes ``decay``."""
    return rule in ("gated", "gated_delta")


def is_delta(rule: AttributeValue) -> bool:
    """Whether the rule takes ``beta``."""
    return rule in ("delta", "gated_delta")


def scale_of(attributes: Mapping[str, AttributeValue], key_width: int) -> float:
    """What the output is multiplied by."""
    return float(attributes["scale"]) or key_width**-0.5


def reference(inputs: Inputs, attributes: Mapping[str, AttributeValue]) -> Outputs:
    """The recurrence in float64, token by token."""
    values = {name: np.asarray(value).astype(np.float64) for name, value in inputs.items()}
    rule = attributes["update_rule"]
    query_heads, heads = int(attributes["q_num_heads"]), int(attributes["kv_num_heads"])
    batch, time, _ = values["query"].shape
    query = values["query"].reshape(batch, time, query_heads, -1)
    key = values["key"].reshape(batch, time, heads, -1)
    value = values["value"].reshape(batch, time, heads, -1)
    width = key.shape[3]
    state = values.get("past_state", np.zeros((batch, heads, width, value.shape[3]))).copy()
    output = np.zeros((batch, time, query_heads, value.shape[3]))
    for row in range(batch):
        for t in range(time):
            for head in range(heads):
                S, k, v = state[row, head], key[row, t, head], value[row, t, head]
                if is_gated(rule):
                    S = (
                        S
                        * np.exp(values["decay"].reshape(batch, time, heads, -1)[row, t, head])[
                            :, None
                        ]
                    )
                if is_delta(rule):
                    beta = values["beta"][row, t]
                    v = beta[head % len(beta)] * (v - S.T @ k)
                state[row, head] = S + np.outer(k, v)
            for head in range(query_heads):
                S = state[row, head // (query_heads // heads)]
                output[row, t, head] = S.T @ query[row, t, head]
    output *= scale_of(attributes, width)
    return {"output": output.reshape(batch, time, -1), "present_state": state}


def make_inputs(
    rng: np.random.Generator,
    sizes: Mapping[str, int],
    omit: Collection[str] = (),
    ragged: bool = False,
) -> Inputs:
    """Valid inputs in float64 with keys of length 1.

    Args:
        rng: source of the numbers.
        sizes: B, T, H key/value heads, G queries for each, K and V the widths; ``g`` and ``b``, the
            last sizes of decay and beta, are H where left out.
        omit: ports to leave out: what the rule forbids, and what is optional.
        ragged: nothing; the operator has no lengths.
    """
    batch, time, heads, group, width, out = (sizes[letter] for letter in "BTHGKV")
    normal = rng.standard_normal
    key = normal((batch, time, heads, width))
    key /= np.linalg.norm(key, axis=3, keepdims=True)
    rate = rng.uniform(1e-3, 0.6, (batch, time, sizes.get("g", heads)))
    inputs: Inputs = {
        "query": normal((batch, time, heads * group * width)),
        "key": key.reshape(batch, time, -1),
        "value": normal((batch, time, heads * out)),
        "past_state": normal((batch, heads, width, out)) / np.sqrt(width),
        "decay": -rate,
        "beta": rng.uniform(0.05, 0.95, (batch, time, sizes.get("b", heads))),
    }
    return {name: value for name, value in inputs.items() if name not in omit}


def call(
    shapes: Mapping[str, Shape], types: Mapping[str, str], attributes: Mapping[str, Any]
) -> Call:
    """One node as a call; see :func:`ssm_export_plugins.standard.call`."""
    _shapes.check_ports(SPEC, shapes, types)
    given = {**SPEC.attributes, **{k: v for k, v in attributes.items() if k != "chunk_size"}}
    rule = given["update_rule"]
    if rule not in RULES:
        _shapes.refuse(SPEC, f"update_rule is {rule!r}, it may be {', '.join(RULES)}")
    query_heads, heads = (int(given.get(name, 0)) for name in ("q_num_heads", "kv_num_heads"))
    if heads < 1 or query_heads < 1 or query_heads % heads:
        _shapes.refuse(
            SPEC,
            f"q_num_heads is {query_heads} and kv_num_heads {heads}: both are needed, and the "
            "first is a multiple of the second",
        )
    for name, wanted in (("decay", is_gated(rule)), ("beta", is_delta(rule))):
        if wanted != (name in shapes):
            verb = "needs" if wanted else "takes no"
            _shapes.refuse(SPEC, f"update_rule {rule} {verb} '{name}'")
    past = shapes.get("past_state", (None,) * 4)
    width = _shapes.known(
        SPEC,
        "the key width d_k",
        {
            "'query'": _part(shapes["query"], query_heads, "query"),
            "'key'": _part(shapes["key"], heads, "key"),
            "'past_state'": past[2],
        },
    )
    out = _shapes.known(
        SPEC,
        "the value width d_v",
        {"'value'": _part(shapes["value"], heads, "value"), "'past_state'": past[3]},
    )
    _shapes.known(SPEC, "the number of heads", {"kv_num_heads": heads, "'past_state'": past[1]})
    sizes = {
        "H": heads, "K": width, "V": out, "q": query_heads * width, "k": heads * width,
        "v": heads * out, "o": query_heads * out,
    }  # fmt: skip
    for name, letter, allowed in (
        ("decay", "g", (heads, heads * width)),
        ("beta", "b", (heads, 1)),
    ):
        if name in shapes:
            size = sizes[letter] = _shapes.known(
                SPEC, f"the last size of '{name}'", {f"'{name}'": shapes[name][2]}
            )
            if size not in allowed:
                _shapes.refuse(
                    SPEC,
                    f"the last size of '{name}' is {size}, it may be {allowed[0]} or {allowed[1]}",
                )
    if shapes["query"][1] == 1:
        sizes["T"] = 1
    kind = _shapes.common_type(SPEC, "T", types)
    state = _shapes.common_type(SPEC, "S", types, default=kind)
    return Call(frozenset(shapes), given, sizes, {"T": kind, "S": state})


def _part(shape: Shape, heads: int, name: str) -> int | None:
    packed = shape[2]
    if not isinstance(packed, int):
        return None
    if packed % heads:
        _shapes.refuse(SPEC, f"the last size of '{name}' is {packed}, no multiple of {heads} heads")
    return packed // heads


SPEC = OpSpec(
    name="LinearAttention",
    doc=DOC,
    inputs=(
        Port("query", "BTq", doc="Queries, heads packed."),
        Port("key", "BTk", doc="Keys, heads packed."),
        Port("value", "BTv", doc="Values, heads packed."),
        Port("past_state", "BHKV", "S", optional=True, doc="State before the first token."),
        Port("decay", "BTg", optional=True, doc="Logarithms of the decays."),
        Port("beta", "BTb", optional=True, doc="How much of the correction is written."),
    ),
    outputs=(
        Port("output", "BTo", doc="What the queries read, heads packed."),
        Port("present_state", "BHKV", "S", doc="State after the last token."),
    ),
    attributes={"scale": 0.0, "update_rule": "gated_delta"},
    reference=reference,
    make_inputs=make_inputs,
    bodies={},
    tolerances=ssd_scan.SPEC.tolerances,
    sizes={"B": 2, "T": 16, "H": 2, "G": 2, "K": 16, "V": 24},
)
