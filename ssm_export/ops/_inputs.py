"""Small pieces that the generators and the float64 references of the operators share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ssm_export.ops.spec import AttributeValue, Inputs


def softplus(x: np.ndarray) -> np.ndarray:
    """``log(1 + exp(x))`` in float64 without overflow, accurate far below zero."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def silu(x: np.ndarray) -> np.ndarray:
    """``x · sigmoid(x)`` in float64, with the right limit for very negative x."""
    with np.errstate(over="ignore"):
        return x / (1.0 + np.exp(-x))


def time_step(
    dt: np.ndarray, bias: np.ndarray | None, attributes: Mapping[str, AttributeValue]
) -> np.ndarray:
    """``clamp(softplus(dt + bias), dt_min, dt_max)`` as far as the attributes ask for it."""
    if bias is not None:
        dt = dt + bias
    if attributes["dt_softplus"]:
        dt = softplus(dt)
    if "dt_min" in attributes:
        dt = np.clip(dt, float(attributes["dt_min"]), float(attributes["dt_max"]))
    return dt


def as_float64(inputs: Inputs) -> Inputs:
    """Every array in float64, the integer ``sequence_lengths`` as it is."""
    return {
        name: value if name == "sequence_lengths" else np.asarray(value).astype(np.float64)
        for name, value in inputs.items()
    }


def row_lengths(inputs: Inputs, batch: int, time: int) -> np.ndarray:
    """(B,) tokens of each row: ``sequence_lengths`` or all of them."""
    return np.asarray(inputs.get("sequence_lengths", np.full(batch, time)))


def raw_time_step(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Inputs of a softplus that give steps from 1e-3 to 0.3, as trained models have."""
    step = np.exp(rng.uniform(np.log(1e-3), np.log(0.3), shape))
    return step + np.log(-np.expm1(-step))


def make_lengths(rng: np.random.Generator, batch: int, time: int) -> np.ndarray:
    """(B,) lengths from 0 to T, int32, with a full row first and an empty one where B > 2."""
    lengths = rng.integers(0, time + 1, batch).astype(np.int32)
    lengths[0] = time
    if batch > 2:
        lengths[-1] = 0
    return lengths
