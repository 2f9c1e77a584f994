"""The type of the recurrent state: fp32, fp16, or int8 with one scale for each block.

An int8 state is two tensors that graphs pass on: codes ``past_ssm.i`` and, for each block of the
last axis, a scale ``past_ssm_scale.i``. A state h becomes

    s = max(max|h| / 127, 2⁻¹²⁶) over the block,   q = h / s,
    code = floor(q + frac(1021·q)),   h ≈ code · s

in standard operators around the scan, which goes on computing in fp32. Scales are computed at every
call and QuantizeLinear takes constant ones only (TensorRT's rule), so it has the scale 1 and a Div
before it. A block of zeros is exact.

Rounding to the nearest code loses every change that is smaller than half a step while the scale of
the block hardly moves, and such errors all have one sign. So the low bits of q
itself, which are as good as random, decide whether it goes up or down, with the probability that
makes the mean right: stochastic rounding without random numbers, which gives the same codes each
time. Worst relative L2 of a state of two trained models of 1 M parameters (Mamba; Mamba-2):

- after 4096 random tokens: to the nearest 1.8e-1; 1.1e-1, in blocks of 8; 16 1.8e-1; 9.7e-2, square
  roots of the values as codes 1.5e-1; 1.0e-1, this 4.0e-2; 5.3e-2, the same with random numbers;
- after 2048 bytes of source code: to the nearest 5.7e-2; 5.5e-2, this 3.2e-2; 7.0e-2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import SSM, StateSpec
from ssm_export.engines.runner import Arrays, Recurrent, Runner
from ssm_export.errors import SsmExportError
from ssm_export.ops.spec import DOMAIN
from ssm_export.quantization.int8_state import (
    LARGEST_CODE,
    LENGTHS,
    MIXER,
    SMALLEST_SCALE,
    Int8States,
    port_named,
)

if TYPE_CHECKING:
    import onnx_ir as ir

STATE_TYPES: Final = ("fp32", "fp16", "int8")
_OPSET: Final = 21
_ONNX_TYPES: Final = {"float32": "FLOAT", "float16": "FLOAT16"}
_NAMES: Final = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


def retype_states(
    model: ir.Model, states: Sequence[StateSpec], dtype: str, *, block: int = 0
) -> tuple[StateSpec, ...]:
    """Give the SSM states of a graph another type, in place; convolution states are left.

    ``fp32`` and ``fp16`` become the type of the scan's own state, and its bodies are made anew.
    ``int8`` wraps the scan as the module says and raises the opset to 21.

    Args:
        model: a canonical ``step`` or ``prefill`` graph whose SSM states are fp32 or fp16.
        states: its states in graph order.
        dtype: one of :data:`STATE_TYPES`.
        block: entries of the last axis N that share a scale; all of them when 0. Int8 only.

    Returns:
        The states of the graph as it is now, in graph order: after int8 codes come their scales.

    Raises:
        SsmExportError: ``BAD_OPTION`` for bf16, an unknown type, or a block that does not divide N;
            ``ALREADY_QUANTIZED`` for states that are int8; ``GRAPH_INVALID`` where a state is not
            one of the graph's, or something but a scan reads it.
    """
    check_state_type(dtype)
    if any(spec.dtype == "int8" for spec in states):
        raise SsmExportError(
            errors.ALREADY_QUANTIZED,
            "the recurrent state is int8 already",
            fix="quantize the bundle with the fp32 state that it was made from",
        )
    chosen = [spec for spec in states if spec.kind == SSM]
    scan_type = _NAMES["fp32" if dtype == "int8" else dtype]
    for spec in chosen:
        _block_of(spec, block)
        _set_scan_type(model.graph, spec, scan_type)
    if any(spec.dtype != scan_type for spec in chosen):
        _new_bodies(model)
    if dtype != "int8":
        return tuple(replace(s, dtype=scan_type) if s.kind == SSM else s for s in states)
    _raise_opset(model)
    wrap = Int8States(model.graph)
    made: list[StateSpec] = []
    for spec in states:
        made += wrap(spec, _block_of(spec, block)) if spec.kind == SSM else [spec]
    return tuple(made)


def check_state_type(dtype: str) -> None:
    """``BAD_OPTION`` for a type that no state can have, with the reason."""
    if dtype == "bf16":
        raise errors.bf16_state()
    if dtype not in STATE_TYPES:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"'{dtype}' is no type of a state",
            where="state",
            fix=f"one of {', '.join(STATE_TYPES)}",
        )


def simulate_state(values: np.ndarray, dtype: str, block: int = 0) -> np.ndarray:
    """A state (…,N) after it was stored as ``dtype`` and read back, as float32.

    The arithmetic of an int8 state is float32 like the graph's; where a runtime is off by one unit
    in the last place, it may choose the other neighbouring code.
    """
    check_state_type(dtype)
    values = np.asarray(values, dtype=np.float32)
    if dtype == "fp32":
        return values
    if dtype == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    width = block or values.shape[-1]
    blocks = values.reshape(*values.shape[:-1], -1, width)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    scale = np.maximum(largest / np.float32(LARGEST_CODE), np.float32(SMALLEST_SCALE))
    exact = blocks / scale
    mixed = exact * np.float32(MIXER)
    codes = np.clip(np.floor(exact + (mixed - np.floor(mixed))), -LARGEST_CODE, LARGEST_CODE)
    return (codes * scale).reshape(values.shape)


class RoundedStates(Recurrent):
    """A model with float states whose SSM states are rounded by numpy after every call.

    The independent twin of a graph with retyped states: its errors are what that graph may have.

    Args:
        model: the float model; its bundle's SSM states are float32.
        dtype: one of :data:`STATE_TYPES`.
        block: as in :func:`retype_states`.
    """

    def __init__(self, model: Recurrent, dtype: str, block: int = 0) -> None:
        super().__init__(model.bundle, _RoundingRunner(model, dtype, block))


class _RoundingRunner:
    def __init__(self, model: Recurrent, dtype: str, block: int) -> None:
        check_state_type(dtype)
        self._runner: Runner = model.runner
        self._states = [spec for spec in model.states if spec.kind == SSM]
        self._dtype, self._block = dtype, block
        self.info = self._runner.info
        self.max_chunk: int | None = getattr(self._runner, "max_chunk", None)

    def run(self, form: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        outputs = self._runner.run(form, feeds)
        for spec in self._states:
            raw = outputs[spec.name_out]
            kept = simulate_state(raw, self._dtype, self._block).astype(raw.dtype)
            if LENGTHS in feeds:
                idle = feeds[LENGTHS] == 0
                kept[idle] = feeds[spec.name_in][idle]
            outputs[spec.name_out] = kept
        return outputs

    def close(self) -> None:
        self._runner.close()


def _block_of(spec: StateSpec, block: int) -> int:
    """Entries of N that share a scale; ``BAD_OPTION`` where N is no multiple of them."""
    size = spec.shape[-1]
    assert isinstance(size, int)
    width = block or size
    if width < 1 or size % width:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"blocks of {block} do not divide the {size} entries of a row",
            where=spec.name_in,
            fix=f"a divisor of {size}, or 0 for one block",
        )
    return width


def _set_scan_type(graph: ir.Graph, spec: StateSpec, dtype: str) -> None:
    import onnx_ir as ir

    past = port_named(graph.inputs, spec.name_in)
    present = port_named(graph.outputs, spec.name_out)
    producer = present.producer()
    for node in (producer, *past.consumers()):
        if node is None or node.domain != DOMAIN:
            raise SsmExportError(
                errors.GRAPH_INVALID,
                f"'{spec.name_in}' does not go into and out of a scan alone",
                where="" if node is None else str(node.name),
                fix="retype the states of a canonical graph, as export writes it",
            )
    for value in (past, present):
        value.type = ir.TensorType(ir.DataType[_ONNX_TYPES[dtype]])


def _new_bodies(model: ir.Model) -> None:
    from ssm_export.lowering.bodies import attach_bodies

    ids = port_named(model.graph.inputs, "input_ids")
    assert ids.shape is not None
    opset = model.graph.opset_imports[""]
    attach_bodies(model, "step" if ids.shape[1] == 1 else "prefill")
    for function in model.functions.values():
        function.opset_imports[""] = opset


def _raise_opset(model: ir.Model) -> None:
    imports = [model.graph.opset_imports]
    imports += [function.opset_imports for function in model.functions.values()]
    for versions in imports:
        versions[""] = max(versions[""], _OPSET)
