"""An engine of TensorRT or TensorRT-RTX on the GPU: its contexts, buffers, and CUDA graphs.

Not run on a GPU yet; the tests run it on a stand-in of the driver and of the runtime, which holds
the order of the calls to what the documentation asks for:

* A CUDA graph holds the shapes and addresses that it was captured with, so each direction between
  two sets of buffers has an execution context and a graph of its own, and a graph is dropped as
  soon as a shape or an address is another one.
  Contexts share a profile, as TensorRT lets them from 10 on.
* TensorRT does some of its work at the first run after a shape was set, so that run is not
  captured: the second is.
* TensorRT-RTX compiles kernels while it runs, so it captures by itself when it is asked to with its
  own ``CudaGraphStrategy``, and nothing is captured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import EngineEntry, StateSpec
from ssm_export.engines._cuda import Device, Graph
from ssm_export.engines._ports import Port, check_feeds
from ssm_export.engines._trt_choice import mismatch
from ssm_export.engines.runner import Arrays
from ssm_export.errors import SsmExportError

_NUMPY_NAMES: Final = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_BFLOAT16: Final = "bfloat16"


class Engine:
    """A deserialized engine, on one of its profiles.

    Args:
        device: the GPU.
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        engine: what it deserialized.
        entry: the engine's place in the manifest.
        profile: the optimization profile that is used.
        directions: how many sets of addresses the states alternate between.
        graph: whether runs are under a CUDA graph.
    """

    def __init__(
        self,
        device: Device,
        trt: Any,
        engine: Any,
        entry: EngineEntry,
        *,
        profile: int = 0,
        directions: int = 1,
        graph: bool = False,
    ) -> None:
        self._device = device
        self._entry = entry
        capture = graph and not own_graphs(trt)
        self._contexts = [
            _Context(device, _created(device, trt, engine, entry, profile, graph), capture)
            for _ in range(directions)
        ]
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._types = {name: engine.get_tensor_dtype(name).name for name in names}
        axes = {"input_ids": ("batch", "time")}
        self._ports = tuple(
            Port(
                name,
                _fed_type(self._types[name]),
                tuple(
                    axes.get(name, ("batch",))[axis] if size < 0 else int(size)
                    for axis, size in enumerate(engine.get_tensor_shape(name))
                ),
            )
            for name in inputs
        )

    @property
    def refused(self) -> bool:
        """Whether a run could not be captured, so that none is any more."""
        return any(context.refused for context in self._contexts)

    def check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Names, types and shapes, and that the sizes are inside the engine's profile."""
        sizes = check_feeds(self._entry.form, self._ports, feeds)
        for axis, size in sizes.items():
            low, _, high = self._entry.profile.get(axis, [1, 1, size])
            if not low <= size <= high:
                raise SsmExportError(
                    errors.BAD_OPTION,
                    f"the {axis} is {size}, the engine takes {low} to {high}",
                    where=f"{self._entry.form} engine for {self._entry.target}",
                    fix="feed a prompt in pieces, the states carry over; or build with a larger "
                    "--max-batch or --max-chunk",
                )

    def execute(
        self,
        fed: Arrays,
        states: tuple[StateSpec, ...],
        buffers: Buffers,
        bound: Mapping[str, str],
        direction: int = 0,
    ) -> np.ndarray:
        """Run once: upload what is fed, bind the states' buffers, download the logits.

        ``bound`` gives the buffer of every state's input and output by its name; ``direction``
        says which of the sets of addresses they are.
        """
        rows = fed["input_ids"].shape[0]
        shapes: dict[str, tuple[int, ...]] = {name: array.shape for name, array in fed.items()}
        addresses = {name: buffers.sized(name, array.nbytes) for name, array in fed.items()}
        for spec in states:
            shapes[spec.name_in] = tuple(
                size if isinstance(size, int) else rows for size in spec.shape
            )
            for name in (spec.name_in, spec.name_out):
                addresses[name] = buffers.address(bound[name])
        context = self._contexts[direction % len(self._contexts)]
        shape = context.shaped(shapes)
        dtype = _NUMPY_NAMES.get(self._types["logits"], self._types["logits"].lower())
        logits = np.empty(shape, dtype=storage(dtype))
        addresses["logits"] = buffers.sized("logits", logits.nbytes)
        context.bind(addresses)
        for name, array in fed.items():
            self._device.upload(addresses[name], array)
        if not context.run():
            raise SsmExportError(
                errors.RUNNER_FAILED,
                "the engine did not run; TensorRT's message is above",
                where=f"{self._entry.form} engine for {self._entry.target}",
                fix="ssm-export doctor; then build again on this device",
            )
        self._device.download(logits, addresses["logits"])
        self._device.wait()
        return from_device_type(logits, dtype)

    def close(self) -> None:
        """Free the contexts and their graphs."""
        for context in self._contexts:
            context.close()
        self._contexts.clear()


class _Context:
    """An execution context, what is set in it, and the graph of a run with that."""

    def __init__(self, device: Device, context: Any, capture: bool) -> None:
        self._device = device
        self._context = context
        self._capture = capture
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._logits: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._runs = 0
        self._graph: Graph | None = None
        self.refused = False

    def shaped(self, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Set the shapes of the inputs; gives that of the logits."""
        if shapes != self._shapes:
            self._drop()
            for name, shape in shapes.items():
                self._context.set_input_shape(name, shape)
            self._shapes = shapes
            self._logits = tuple(self._context.get_tensor_shape("logits"))
        return self._logits

    def bind(self, addresses: dict[str, int]) -> None:
        """Set where every input and output is."""
        if addresses != self._addresses:
            self._drop()
            for name, address in addresses.items():
                self._context.set_tensor_address(name, address)
            self._addresses = addresses

    def run(self) -> bool:
        """Run on the device's stream: by the graph where there is one."""
        if self._graph is None and self._capture and self._runs and not self.refused:
            with self._device.captured() as capture:
                recorded = bool(self._context.execute_async_v3(self._device.stream))
            self._graph = capture.graph if recorded else None
            self.refused = self._graph is None
        if self._graph is not None:
            self._graph.launch()
            return True
        self._runs += 1
        return bool(self._context.execute_async_v3(self._device.stream))

    def close(self) -> None:
        """Drop the graph, then the context."""
        self._drop()
        self._context = None

    def _drop(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._runs = 0


class Buffers:
    """Device buffers by tensor name, grown when more is asked for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, tuple[int, int]] = {}

    def sized(self, name: str, size: int) -> int:
        """The address of a buffer of at least ``size`` bytes; growing loses what it held."""
        address, have = self._held.get(name, (0, 0))
        if have < size:
            if address:
                self._device.free(address)
            address = self._device.allocate(size)
            self._held[name] = (address, size)
        return address

    def address(self, name: str) -> int:
        """The address of a buffer that is there."""
        return self._held[name][0]

    def swap(self, one: str, other: str) -> None:
        """Exchange two buffers."""
        self._held[one], self._held[other] = self._held[other], self._held[one]


def own_graphs(trt: Any) -> bool:
    """Whether the runtime captures CUDA graphs by itself: TensorRT-RTX does, from 1.2 on."""
    return hasattr(trt, "CudaGraphStrategy")


def storage(dtype: str) -> str:
    """The numpy type that holds a tensor's bytes."""
    return "uint16" if dtype == _BFLOAT16 else dtype


def to_device_type(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array as the device holds it: bfloat16 as the upper halves of float32, rounded."""
    if dtype != _BFLOAT16:
        return np.ascontiguousarray(array, dtype=dtype)
    import ml_dtypes

    # A saved state may come from a runtime that keeps such a state in float32.
    rounded = np.ascontiguousarray(array, dtype=np.float32).astype(ml_dtypes.bfloat16)
    return rounded.view(np.uint16)


def from_device_type(array: np.ndarray, dtype: str) -> np.ndarray:
    """The reverse: bfloat16 as float32."""
    if dtype != _BFLOAT16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def _created(
    device: Device, trt: Any, engine: Any, entry: EngineEntry, profile: int, graph: bool
) -> Any:
    """A new execution context; one that captures by itself where the runtime can."""
    if own_graphs(trt):
        config = engine.create_runtime_config()
        kinds = trt.CudaGraphStrategy
        config.cuda_graph_strategy = kinds.WHOLE_GRAPH_CAPTURE if graph else kinds.DISABLED
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise SsmExportError(
            errors.RUNNER_FAILED,
            "TensorRT makes no execution context of it; its message is above",
            where=f"{entry.form} engine for {entry.target}",
            fix="ssm-export doctor shows the GPU's memory; build with a smaller --max-chunk",
        )
    if profile and not context.set_optimization_profile_async(profile, device.stream):
        raise mismatch(entry, f"it has no optimization profile {profile}")
    return context


def _fed_type(trt_name: str) -> str:
    """The numpy type in which an input is fed: bfloat16 travels as float32."""
    name = _NUMPY_NAMES.get(trt_name, trt_name.lower())
    return "float32" if name == _BFLOAT16 else name
