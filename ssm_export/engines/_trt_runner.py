"""Runs the engines of a bundle on a GPU, with TensorRT or TensorRT-RTX.

Not run on the machine where it was written, which has no GPU; what comes before the GPU (which
engine, its hash, its version) is tested there.

States stay on the device between steps. In an engine of standard operators each has two buffers:
one bound to the past input, the other to the present output, swapped after every run. One buffer
for both would need the promise that a kernel reads all of a state before it writes any, which
TensorRT does not give and our plugins do: in a unified engine past and present are one buffer.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import FORMS, UNIFIED, Bundle, EngineEntry, StateSpec
from ssm_export.engines._cuda import Device
from ssm_export.engines._ports import Port, check_feeds
from ssm_export.engines._trt_build import module_name
from ssm_export.engines._trt_choice import choose_engines, load_library, mismatch, other_library
from ssm_export.engines.runner import Arrays, RunnerInfo
from ssm_export.errors import SsmExportError
from ssm_export.machine import find_gpus

_NUMPY_NAMES: Final = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_BFLOAT16: Final = "bfloat16"


class TensorRtRunner:
    """A bundle's engines on the first GPU. Also a :class:`~ssm_export.engines.runner.Resident`.

    Args:
        bundle: the open bundle.
        name: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        SsmExportError: ``NO_ENGINE``, ``HASH_MISMATCH``, ``MISSING_PACKAGE``, ``ENGINE_MISMATCH``
            ``NO_GPU`` or ``PLUGIN_LIBRARY``, in this order of looking.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        gpus = find_gpus()
        capability = gpus[0].compute_capability if gpus else None
        self.entries = choose_engines(bundle, name, capability)
        self._states: tuple[StateSpec, ...] = bundle.manifest.states
        self._device = Device()
        self._trt: Any = importlib.import_module(module_name(name))
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._logger)
        if any(entry.library for entry in self.entries.values()):
            load_library(self._trt)
        self._engines = self._deserialize(bundle)
        self._buffers = _Buffers(self._device)
        self._rows = 0
        self.info = RunnerInfo(
            name=name,
            versions={module_name(name): str(self._trt.__version__)},
            device=gpus[0].name,
            lowering=next(iter(self.entries.values())).lowering,
        )

    @property
    def max_chunk(self) -> int | None:
        """The most tokens that one call of the prefill engine takes."""
        entry = self.entries.get(UNIFIED) or self.entries.get("prefill")
        return entry.profile["time"][2] if entry and "time" in entry.profile else None

    def _deserialize(self, bundle: Bundle) -> dict[str, _Engine]:
        """An execution context per form; a unified engine gives both, a profile each."""
        engines: dict[str, _Engine] = {}
        for form, entry in self.entries.items():
            engine = self._runtime.deserialize_cuda_engine(bundle.file(entry.file).read_bytes())
            if engine is None:
                raise mismatch(entry, f"the runtime here does not load it{other_library(entry)}")
            if form == UNIFIED:
                for profile, served in enumerate(FORMS):
                    engines[served] = _Engine(self, engine, entry, profile)
            else:
                engines[form] = _Engine(self, engine, entry)
        return engines

    def run(self, form: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Run a graph once; the states go to the GPU and come back.

        Raises:
            SsmExportError: ``BAD_FEED``, ``BAD_OPTION`` for a size outside the engine's profile,
                or ``RUNNER_FAILED``.
        """
        self._engine(form).check(feeds)
        self.load_state({state.name_in: feeds[state.name_in] for state in self._states})
        logits = self.advance(form, feeds["input_ids"], feeds.get("sequence_lengths"))
        past = self.read_state()
        present = {state.name_out: past[state.name_in] for state in self._states}
        return {"logits": logits, **present}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy every ``past_*`` array to the device."""
        self._rows = next(iter(state.values())).shape[0] if state else self._rows
        for spec in self._states:
            array = _to_device_type(state[spec.name_in], spec.dtype)
            self._device.upload(self._buffers.sized(spec.name_in, array.nbytes), array)
            if not self._in_place:
                self._buffers.sized(spec.name_out, array.nbytes)
        self._device.wait()

    def advance(
        self, form: str, input_ids: np.ndarray, lengths: np.ndarray | None = None
    ) -> np.ndarray:
        """Run a graph on the states on the device and leave the new ones there.

        Args:
            form: ``step`` or ``prefill``.
            input_ids: (B,T) int64.
            lengths: (B,) int32, for a ragged bundle.

        Returns:
            logits (B,1,V) or (B,T,V).
        """
        fed = {"input_ids": np.ascontiguousarray(input_ids, dtype=np.int64)}
        if lengths is not None:
            fed["sequence_lengths"] = np.ascontiguousarray(lengths, dtype=np.int32)
        bound = {state.name_in: state.name_in for state in self._states}
        bound |= {s.name_out: s.name_in if self._in_place else s.name_out for s in self._states}
        logits = self._engine(form).execute(fed, self._states, self._buffers, bound)
        if not self._in_place:
            for spec in self._states:
                self._buffers.swap(spec.name_in, spec.name_out)
        return logits

    def read_state(self) -> Arrays:
        """The states under their ``past_*`` names, copied from the device."""
        arrays: Arrays = {}
        raw = {}
        for spec in self._states:
            shape = tuple(size if isinstance(size, int) else self._rows for size in spec.shape)
            raw[spec.name_in] = np.empty(shape, dtype=_storage(spec.dtype))
            self._device.download(raw[spec.name_in], self._buffers.address(spec.name_in))
        self._device.wait()
        for spec in self._states:
            arrays[spec.name_in] = _from_device_type(raw[spec.name_in], spec.dtype)
        return arrays

    def close(self) -> None:
        """Free the engines and every buffer."""
        self._engines.clear()
        self._device.close()

    @property
    def _in_place(self) -> bool:
        return UNIFIED in self.entries

    def _engine(self, form: str) -> _Engine:
        if form not in self._engines:
            raise SsmExportError(
                errors.NO_ENGINE,
                f"the bundle has no {form} engine",
                fix="ssm-export build BUNDLE builds both",
            )
        return self._engines[form]


class _Engine:
    """An execution context of a deserialized engine, on one of its profiles."""

    def __init__(
        self, runner: TensorRtRunner, engine: Any, entry: EngineEntry, profile: int = 0
    ) -> None:
        self._device = runner._device
        self._entry = entry
        self._engine = engine
        self._context = self._engine.create_execution_context()
        if profile and not self._context.set_optimization_profile_async(
            profile, self._device.stream
        ):
            raise mismatch(entry, f"it has no optimization profile {profile}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._is_input = {
            name: self._engine.get_tensor_mode(name) == runner._trt.TensorIOMode.INPUT
            for name in names
        }
        self._types = {name: self._engine.get_tensor_dtype(name).name for name in names}
        axes = {"input_ids": ("batch", "time")}
        self._ports = tuple(
            Port(
                name,
                _fed_type(self._types[name]),
                tuple(
                    axes.get(name, ("batch",))[axis] if size < 0 else int(size)
                    for axis, size in enumerate(self._engine.get_tensor_shape(name))
                ),
            )
            for name in names
            if self._is_input[name]
        )

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
        buffers: _Buffers,
        bound: Mapping[str, str],
    ) -> np.ndarray:
        """Run once: upload what is fed, bind the states' buffers, download the logits.

        ``bound`` gives the buffer of every state's input and output by its name.
        """
        rows = fed["input_ids"].shape[0]
        for name, array in fed.items():
            self._context.set_input_shape(name, array.shape)
            address = buffers.sized(name, array.nbytes)
            self._device.upload(address, array)
            self._context.set_tensor_address(name, address)
        for spec in states:
            shape = tuple(size if isinstance(size, int) else rows for size in spec.shape)
            self._context.set_input_shape(spec.name_in, shape)
            for name in (spec.name_in, spec.name_out):
                self._context.set_tensor_address(name, buffers.address(bound[name]))
        logits = np.empty(
            tuple(self._context.get_tensor_shape("logits")), dtype=_storage(self._dtype("logits"))
        )
        address = buffers.sized("logits", logits.nbytes)
        self._context.set_tensor_address("logits", address)
        if not self._context.execute_async_v3(self._device.stream):
            raise SsmExportError(
                errors.RUNNER_FAILED,
                "the engine did not run; TensorRT's message is above",
                where=f"{self._entry.form} engine for {self._entry.target}",
                fix="ssm-export doctor; then build again on this device",
            )
        self._device.download(logits, address)
        self._device.wait()
        return _from_device_type(logits, self._dtype("logits"))

    def _dtype(self, name: str) -> str:
        return _NUMPY_NAMES.get(self._types[name], self._types[name].lower())


class _Buffers:
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


def _storage(dtype: str) -> str:
    """The numpy type that holds a tensor's bytes."""
    return "uint16" if dtype == _BFLOAT16 else dtype


def _fed_type(trt_name: str) -> str:
    """The numpy type in which an input is fed: bfloat16 travels as float32."""
    name = _NUMPY_NAMES.get(trt_name, trt_name.lower())
    return "float32" if name == _BFLOAT16 else name


def _to_device_type(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != _BFLOAT16:
        return np.ascontiguousarray(array, dtype=dtype)
    # The fed float32 hold bfloat16 values already, so their upper halves are the numbers.
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16)


def _from_device_type(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != _BFLOAT16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)
