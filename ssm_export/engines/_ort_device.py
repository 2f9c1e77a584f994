"""ONNX Runtime with the states kept on its device, through its IO binding.

Each state has two buffers there: one is bound to the past input, the other to the present output,
and they change places after every run. ONNX Runtime plans its memory as if no output were an input,
so one buffer for both is nothing that it promises to compute rightly (two graphs where it happened
to were found on the CPU; that says nothing of others).

The CUDA provider's ``enable_cuda_graph`` is left off: it takes only graphs of which every node runs
on the GPU, which is known when a session is made and not before, and the shapes of a step graph are
computed on the CPU; with buffers that change places it would also need a graph for each direction,
chosen by a run option. Not run on a GPU; the tests run all of this with the CPU as the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssm_export.bundle import Bundle, StateSpec
from ssm_export.engines.onnxruntime import OnnxRuntimeRunner
from ssm_export.engines.runner import Arrays, state_type


class DeviceRunner(OnnxRuntimeRunner):
    """A bundle in ONNX Runtime that also is a :class:`~ssm_export.engines.runner.Resident`.

    ``run`` is that of :class:`OnnxRuntimeRunner` and leaves the state on the device alone.

    Args:
        bundle, name, lowering, threads: as for :class:`OnnxRuntimeRunner`.
        device: ONNX Runtime's name of the device that keeps the states.

    Raises:
        SsmExportError: as :class:`OnnxRuntimeRunner`.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str = "onnxruntime-cuda",
        *,
        lowering: str | None = None,
        threads: int | None = None,
        device: str = "cuda",
    ) -> None:
        super().__init__(bundle, name, lowering=lowering, threads=threads)
        self._states: tuple[StateSpec, ...] = bundle.manifest.states
        self._device = device
        self._past: dict[str, Any] = {}
        self._present: dict[str, Any] = {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy every ``past_*`` array to the device."""
        for spec in self._states:
            array = np.ascontiguousarray(state[spec.name_in], dtype=state_type(spec))
            held = self._past.get(spec.name_in)
            if held is None or tuple(held.shape()) != array.shape:
                self._past[spec.name_in] = self._buffer(array)
                self._present[spec.name_in] = self._buffer(array)
            self._past[spec.name_in].update_inplace(array)

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

        Raises:
            SsmExportError: ``RUNNER_FAILED`` with the operator that failed.
        """
        session = self._session(form)
        try:
            binding = session.io_binding()
            binding.bind_cpu_input("input_ids", np.ascontiguousarray(input_ids, dtype=np.int64))
            if lengths is not None:
                taken = np.ascontiguousarray(lengths, dtype=np.int32)
                binding.bind_cpu_input("sequence_lengths", taken)
            for spec in self._states:
                binding.bind_ortvalue_input(spec.name_in, self._past[spec.name_in])
                binding.bind_ortvalue_output(spec.name_out, self._present[spec.name_in])
            binding.bind_output("logits", "cpu")
            session.run_with_iobinding(binding)
            # Outputs are listed in the order in which they were bound.
            logits: np.ndarray = binding.get_outputs()[-1].numpy()
        except MemoryError:
            raise
        except Exception as error:  # as in run
            raise self._failure(form, error, "run") from error
        self._past, self._present = self._present, self._past
        return logits

    def read_state(self) -> Arrays:
        """The states under their ``past_*`` names, copied from the device."""
        # On the CPU ONNX Runtime gives a view of the buffer, which a later run writes.
        return {name: np.array(value.numpy(), copy=True) for name, value in self._past.items()}

    def close(self) -> None:
        """Free both sessions and the states."""
        self._past.clear()
        self._present.clear()
        super().close()

    def _buffer(self, array: np.ndarray) -> Any:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(
            list(array.shape), array.dtype, self._device, 0
        )
