"""Codes and scales around the scans of a graph: the nodes of an int8 state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import SSM_SCALE, StateSpec
from ssm_export.errors import SsmExportError

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_CODE: Final = 127
SMALLEST_SCALE: Final = float(np.finfo(np.float32).tiny)
"""2⁻¹²⁶: keeps a block of zeros from being divided by zero."""
MIXER: Final = 1021.0
"""Prime, so that its products with neighbouring values fill [0, 1) evenly; small enough that
127·1021 leaves 7 of float32's 24 bits behind the point."""
LENGTHS: Final = "sequence_lengths"


def port_named(values: Sequence[ir.Value], name: str) -> ir.Value:
    """The graph input or output of this name; ``GRAPH_INVALID`` where there is none."""
    for value in values:
        if value.name == name:
            return value
    raise SsmExportError(
        errors.GRAPH_INVALID,
        f"the graph has no '{name}', which the manifest names",
        fix="export the checkpoint again",
    )


class Int8States:
    """Puts int8 codes and their scales around the scans of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._constants: dict[str, ir.Value] = {}
        self._idle: dict[int, ir.Value] = {}

    def __call__(self, spec: StateSpec, block: int) -> list[StateSpec]:
        """Wrap the scan of one state; the specs of its codes and its scales."""
        size = spec.shape[-1]
        assert isinstance(size, int)
        blocks = size // block
        stems = [name.rpartition(".") for name in (spec.name_in, spec.name_out)]
        name_in, name_out = (f"{stem}_scale.{index}" for stem, _, index in stems)
        letter = spec.layout.rpartition(",")
        last = "1" if blocks == 1 else f"{letter[2]}/{block}"
        codes = replace(spec, dtype="int8")
        scale = replace(
            spec,
            name_in=name_in,
            name_out=name_out,
            kind=SSM_SCALE,
            shape=(*spec.shape[:-1], blocks),
            dtype="float32",
            layout=f"{letter[0]},{last}",
            initial_value=0.0,
        )
        read = self._read(codes, scale)
        self._write(codes, scale, *read)
        return [codes, scale]

    def _read(self, codes: StateSpec, scale: StateSpec) -> tuple[ir.Value, ir.Value]:
        """Codes and scales become graph inputs; gives the codes as floats, and the scales."""

        graph, name = self._graph, codes.name_in
        old = port_named(graph.inputs, name)
        taken, scales = (_value(spec, spec.name_in) for spec in (codes, scale))
        at = list(graph.inputs).index(old)
        readers = list(old.consumers())
        graph.inputs[at] = taken
        graph.inputs.insert(at + 1, scales)
        first = min(readers, key=list(graph).index)
        make = _Maker(graph, name)
        one, zero = self._constant(1.0), self._zero_code()
        plain = make("DequantizeLinear", [taken, one, zero], codes.shape, "codes")
        each = self._over_row(make, scales, codes, scale)
        real = make("Mul", [plain, each], codes.shape, "real")
        if not self._one_token:
            real = self._set_apart(make, real, codes)
        for node in readers:
            for index, value in enumerate(node.inputs):
                if value is old:
                    node.replace_input_with(index, real)
        idle = self._idle_rows(make, len(codes.shape)) if self._ragged else None
        graph.insert_before(first, make.nodes)
        if idle is not None:
            self._idle[len(codes.shape)] = idle
        return plain, scales

    def _write(
        self, codes: StateSpec, scale: StateSpec, past_codes: ir.Value, past_scale: ir.Value
    ) -> None:
        """The scan's new state becomes codes and scales, which are graph outputs."""
        graph, name = self._graph, codes.name_out
        real = port_named(graph.outputs, name)
        producer = real.producer()
        assert producer is not None
        real.name = f"{name}/real"
        make = _Maker(graph, name)
        shape = codes.shape
        size = make("Abs", [real], shape, "size")
        if _blocks(scale) > 1:
            blocks = [0, *scale.shape[1:], -1]
            size = make("Reshape", [size, self._constant(blocks)], None, "size_blocks")
        largest = make(
            "ReduceMax",
            [size, self._constant([-1])],
            scale.shape,
            "largest",
            keepdims=int(_blocks(scale) == 1),
        )
        step = make("Div", [largest, self._constant(float(LARGEST_CODE))], scale.shape, "step")
        step = make("Max", [step, self._constant(SMALLEST_SCALE)], scale.shape, "scale")
        exact = make("Div", [real, self._over_row(make, step, codes, scale)], shape, "exact")
        mixed = make("Mul", [exact, self._constant(MIXER)], shape, "mixed")
        whole = make("Floor", [mixed], shape, "mixed_whole")
        chance = make("Sub", [mixed, whole], shape, "chance")
        dithered = make("Add", [exact, chance], shape, "dithered")
        scaled = make("Floor", [dithered], shape, "rounded")
        if self._ragged:
            idle = self._idle[len(codes.shape)]
            scaled = make("Where", [idle, past_codes, scaled], shape, "kept")
            step = make("Where", [idle, past_scale, step], scale.shape, "kept_scale")
        stored = make(
            "QuantizeLinear", [scaled, self._constant(1.0), self._zero_code()], shape, "int8"
        )
        graph.insert_after(producer, make.nodes)
        stored.name, step.name = name, scale.name_out
        for value, spec in ((stored, codes), (step, scale)):
            like = _value(spec, spec.name_out)
            value.type, value.shape = like.type, like.shape
        at = list(graph.outputs).index(real)
        graph.outputs[at] = stored
        graph.outputs.insert(at + 1, step)

    def _set_apart(self, make: _Maker, real: ir.Value, codes: StateSpec) -> ir.Value:
        """The same numbers in memory of their own: a Pad, and a Slice of what was there before.

        TensorRT-RTX 1.7 gives a state that a Mul makes and a loop over chunks carries on one buffer
        with the loop's own and then finds that their shapes differ («alias congruence class»).
        Reshapes and Transposes in between are seen through; a Pad is not.
        """
        last, size = len(codes.shape) - 1, int(codes.shape[-1])
        wider = (*codes.shape[:-1], size + 1)
        pads = self._constant([*[0] * (2 * last + 1), 1])
        padded = make("Pad", [real, pads], wider, "padded")
        cut = [self._constant([number]) for number in (0, size, last)]
        return make("Slice", [padded, *cut], codes.shape, "set_apart")

    @property
    def _one_token(self) -> bool:
        shape = port_named(self._graph.inputs, "input_ids").shape
        return shape is not None and shape[1] == 1

    @property
    def _ragged(self) -> bool:
        return any(value.name == LENGTHS for value in self._graph.inputs)

    def _idle_rows(self, make: _Maker, rank: int) -> ir.Value | None:
        """(B,1,…) true where a row has no tokens; made once for each rank."""
        import onnx_ir as ir

        if rank in self._idle:
            return self._idle[rank]
        lengths = port_named(self._graph.inputs, LENGTHS)
        zero = self._initializer("constant/scalar_int32_0", np.array(0, np.int32))
        none = make("Equal", [lengths, zero], ("batch",), "no_tokens")
        axes = self._constant(list(range(1, rank)))
        idle = make("Unsqueeze", [none, axes], ("batch", *[1] * (rank - 1)), "idle")
        for value in (none, idle):
            value.type = ir.TensorType(ir.DataType.BOOL)
        return idle

    def _over_row(
        self, make: _Maker, value: ir.Value, codes: StateSpec, scale: StateSpec
    ) -> ir.Value:
        """Scales (…,blocks) for each entry of a row: (…,1), or (…,N). Codes are not cut into blocks
        instead, since ONNX Runtime moves quantization across a Reshape and then mistakes types."""
        blocks = _blocks(scale)
        if blocks == 1:
            return value
        width = int(codes.shape[-1]) // blocks
        column = make("Unsqueeze", [value, self._constant([-1])], (*scale.shape, 1), "column")
        target = self._constant([*[1] * len(scale.shape), width])
        each = make("Expand", [column, target], (*scale.shape, width), "each")
        return make("Reshape", [each, self._constant([0, *codes.shape[1:]])], codes.shape, "row")

    def _constant(self, content: float | Sequence[int | str]) -> ir.Value:
        """A shared constant: a float32 scalar, or int64 numbers; named as export names them."""
        if isinstance(content, float):
            name, array = f"constant/scalar_float_{content}", np.array(content, np.float32)
        else:
            array = np.array(content, np.int64)
            name = f"constant/int64_{'_'.join(str(item) for item in content)}"
        return self._initializer(name, array)

    def _zero_code(self) -> ir.Value:
        return self._initializer("constant/scalar_int8_0", np.array(0, np.int8))

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        import onnx_ir as ir

        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            self._graph.initializers[name] = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        return self._graph.initializers[name]


class _Maker:
    """Makes float32 nodes named after one state, and keeps them in order."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self._prefix = prefix
        self._taken: dict[str, int] = {}

    def __call__(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        shape: Sequence[int | str | ir.SymbolicDim] | ir.Shape | None,
        label: str,
        **attributes: int,
    ) -> ir.Value:
        import onnx_ir as ir

        count = self._taken[label] = self._taken.get(label, 0) + 1
        name = f"{self._prefix}/{label}" + (f".{count}" if count > 1 else "")
        node = ir.node(op, list(inputs), attributes=attributes, name=name)
        value = node.outputs[0]
        value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
        value.shape = None if shape is None else ir.Shape(shape)
        self.nodes.append(node)
        return value


def _blocks(scale: StateSpec) -> int:
    count = scale.shape[-1]
    assert isinstance(count, int)
    return count


def _value(spec: StateSpec, name: str) -> ir.Value:
    import onnx_ir as ir

    kind = ir.DataType.INT8 if spec.dtype == "int8" else ir.DataType.FLOAT
    return ir.Value(name=name, shape=ir.Shape(spec.shape), type=ir.TensorType(kind))
