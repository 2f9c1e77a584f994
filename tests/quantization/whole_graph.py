"""Logits of a whole canonical graph, edited by a test, and what numpy makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime

from ssm_export.bundle import Bundle
from ssm_export.lowering import attach_bodies, lower


def whole_logits(
    bundle: Bundle, rows: np.ndarray, edit: Callable[[ir.Model], object] = lambda model: None
) -> np.ndarray:
    """(N,T,V) float64: the prefill graph, run on every beginning of every row."""
    model = ir.load(bundle.graph_path("prefill", "canonical"))
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    edit(model)
    ready = ir.to_proto(lower(attach_bodies(model, "prefill"), "ort").model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ready.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = []
    for length in range(1, rows.shape[1] + 1):
        feeds = {"input_ids": rows[:, :length]}
        for port in session.get_inputs()[1:]:
            shape = [size if isinstance(size, int) else len(rows) for size in port.shape]
            feeds[port.name] = np.zeros(shape, np.float32)
        found.append(session.run(["logits"], feeds)[0][:, -1])
    return np.stack(found, axis=1).astype(np.float64)


def textbook(
    rows: np.ndarray, reference: np.ndarray, logits: np.ndarray
) -> tuple[float, np.ndarray, float]:
    """Cross entropy in bits, KL in bits of each position, share of equal argmax; softmax as exp
    over its sum, for every position that has a next token."""

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x)
        return e / e.sum(axis=-1, keepdims=True)

    p, q = softmax(reference[:, :-1]), softmax(logits[:, :-1])
    likelihood = np.take_along_axis(q, rows[:, 1:, None], axis=-1)
    kl = (p * np.log2(p / q)).sum(axis=-1)
    same = float((p.argmax(axis=-1) == q.argmax(axis=-1)).mean())
    return float(-np.log2(likelihood).mean()), kl, same


def int8_by_hand(weight: np.ndarray) -> np.ndarray:
    """(K,N) through int8 with a scale per column."""
    scale = np.abs(weight).max(axis=0) / 127
    return (np.clip(np.round(weight / scale), -127, 127) * scale).astype(np.float32)


def int4_by_hand(weight: np.ndarray, block: int) -> np.ndarray:
    """(K,N) through int4 with a scale per ``block`` rows of a column."""
    cut = weight.reshape(-1, block, weight.shape[1])
    scale = np.abs(cut).max(axis=1, keepdims=True) / 7
    codes = np.clip(np.round(cut / scale), -7, 7)
    return (codes * scale).reshape(weight.shape).astype(np.float32)


def replacing(weights: dict[str, Callable[[np.ndarray], np.ndarray]]) -> Callable[[ir.Model], None]:
    """An edit that puts weights by name through functions."""

    def edit(model: ir.Model) -> None:
        for name, function in weights.items():
            value = model.graph.initializers[name]
            value.const_value = ir.tensor(function(value.const_value.numpy()), name=name)

    return edit
