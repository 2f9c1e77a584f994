"""Runs the engines of a bundle on a GPU, with TensorRT or TensorRT-RTX.

Not run on the machine where it was written, which has no GPU; what comes before the GPU (which
engine, its hash, its version) is tested there.

States stay on the device between steps. In an engine of standard operators each has two buffers:
one bound to the past input, the other to the present output, swapped after every run. One buffer
for both would need the promise that a kernel reads all of a state before it writes any, which
TensorRT does not give and our plugins do: in a unified engine past and present are one buffer.

Decoding runs under a CUDA graph (:mod:`ssm_export.engines._trt_engine`): two where the buffers
change places, one for each direction.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssm_export import errors
from ssm_export.bundle import FORMS, UNIFIED, Bundle, EngineEntry, StateSpec
from ssm_export.engines._cuda import Device
from ssm_export.engines._trt_build import module_name
from ssm_export.engines._trt_choice import choose_engines, load_library, mismatch, other_library
from ssm_export.engines._trt_engine import (
    Buffers,
    Engine,
    from_device_type,
    own_graphs,
    storage,
    to_device_type,
)
from ssm_export.engines.runner import Arrays, RunnerInfo
from ssm_export.errors import SsmExportError
from ssm_export.machine import find_gpus


class TensorRtRunner:
    """A bundle's engines on the first GPU. Also a :class:`~ssm_export.engines.runner.Resident`.

    Args:
        bundle: the open bundle.
        name: ``tensorrt`` or ``tensorrt-rtx``.
        cuda_graph: decode under a CUDA graph.

    Raises:
        SsmExportError: ``NO_ENGINE``, ``HASH_MISMATCH``, ``MISSING_PACKAGE``, ``ENGINE_MISMATCH``
            ``NO_GPU`` or ``PLUGIN_LIBRARY``, in this order of looking.
    """

    def __init__(self, bundle: Bundle, name: str, *, cuda_graph: bool = True) -> None:
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
        self._graphs = cuda_graph
        self._loaded = self._deserialize(bundle)
        self._engines = self._in_contexts()
        self._buffers = Buffers(self._device)
        self._rows = 0
        self._direction = 0
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

    @property
    def cuda_graph(self) -> bool | None:
        """Whether decoding runs under a CUDA graph, unless that turned out to be impossible; None
        for a TensorRT-RTX that is too old for it. May be set."""
        if self.info.name == "tensorrt-rtx" and not own_graphs(self._trt):
            return None
        return self._graphs and not any(engine.refused for engine in self._engines.values())

    @cuda_graph.setter
    def cuda_graph(self, wanted: bool) -> None:
        for engine in self._engines.values():
            engine.close()
        self._graphs = wanted
        self._engines = self._in_contexts()

    def _deserialize(self, bundle: Bundle) -> dict[str, tuple[Any, EngineEntry, int]]:
        """An engine, its entry and its profile per form; a unified engine serves both."""
        found: dict[str, tuple[Any, EngineEntry, int]] = {}
        for form, entry in self.entries.items():
            engine = self._runtime.deserialize_cuda_engine(bundle.file(entry.file).read_bytes())
            if engine is None:
                raise mismatch(entry, f"the runtime here does not load it{other_library(entry)}")
            if form == UNIFIED:
                found |= {served: (engine, entry, at) for at, served in enumerate(FORMS)}
            else:
                found[form] = (engine, entry, 0)
        return found

    def _in_contexts(self) -> dict[str, Engine]:
        """Every form ready to run; the step in a graph where that is wanted."""
        engines: dict[str, Engine] = {}
        for form, (engine, entry, profile) in self._loaded.items():
            graph = self._graphs and form == "step"
            engines[form] = Engine(
                self._device,
                self._trt,
                engine,
                entry,
                profile=profile,
                directions=2 if graph and not self._in_place else 1,
                graph=graph,
            )
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
            array = to_device_type(state[spec.name_in], spec.dtype)
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
        logits = self._engine(form).execute(
            fed, self._states, self._buffers, bound, self._direction
        )
        if not self._in_place:
            self._direction = 1 - self._direction
            for spec in self._states:
                self._buffers.swap(spec.name_in, spec.name_out)
        return logits

    def read_state(self) -> Arrays:
        """The states under their ``past_*`` names, copied from the device."""
        arrays: Arrays = {}
        raw = {}
        for spec in self._states:
            shape = tuple(size if isinstance(size, int) else self._rows for size in spec.shape)
            raw[spec.name_in] = np.empty(shape, dtype=storage(spec.dtype))
            self._device.download(raw[spec.name_in], self._buffers.address(spec.name_in))
        self._device.wait()
        for spec in self._states:
            arrays[spec.name_in] = from_device_type(raw[spec.name_in], spec.dtype)
        return arrays

    def close(self) -> None:
        """Free the engines and every buffer."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._loaded.clear()
        self._device.close()

    @property
    def _in_place(self) -> bool:
        return UNIFIED in self.entries

    def _engine(self, form: str) -> Engine:
        if form not in self._engines:
            raise SsmExportError(
                errors.NO_ENGINE,
                f"the bundle has no {form} engine",
                fix="ssm-export build BUNDLE builds both",
            )
        return self._engines[form]
