"""The little of CUDA that a TensorRT runner needs, through the driver library and ctypes.

``libcuda`` comes with the driver, so this needs no CUDA toolkit and no Python package.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.machine import load_driver

_THREAD_LOCAL: Final = 1
"""``CU_STREAM_CAPTURE_MODE_THREAD_LOCAL``: what other threads do meanwhile is no matter."""


class Device:
    """The first GPU: its context, one stream, buffers, copies, CUDA graphs.

    Raises:
        SsmExportError: ``NO_GPU`` where there is none, ``RUNNER_FAILED`` when a call fails.
    """

    def __init__(self) -> None:
        driver = load_driver()
        if driver is None:
            raise SsmExportError(
                errors.NO_GPU,
                "this machine has no NVIDIA GPU, or its driver does not run",
                fix="copy the bundle to the device and run the same command there; "
                "here --runner onnxruntime runs it on the CPU",
            )
        self._driver: Any = driver
        self._owned: set[int] = set()
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
        # The primary context is the one that TensorRT's own CUDA runtime uses.
        self._check(
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
            "cuDevicePrimaryCtxRetain",
        )
        self._device = device
        self._check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
        self._check(driver.cuStreamCreate(ctypes.byref(stream), 0), "cuStreamCreate")
        self.stream = int(stream.value or 0)

    def allocate(self, size: int) -> int:
        """A buffer of ``size`` bytes; gives its address."""
        pointer = ctypes.c_uint64()
        code = self._driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size))
        self._check(code, f"cuMemAlloc of {size} bytes")
        self._owned.add(pointer.value)
        return int(pointer.value)

    def free(self, address: int) -> None:
        """Give a buffer back."""
        self._owned.discard(address)
        self._check(self._driver.cuMemFree_v2(ctypes.c_uint64(address)), "cuMemFree")

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a C-contiguous array to a buffer, after what the stream already holds."""
        code = self._driver.cuMemcpyHtoDAsync_v2(
            ctypes.c_uint64(address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(self.stream),
        )
        self._check(code, "copy to the GPU")

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy a buffer into a C-contiguous array; call :meth:`wait` before reading it."""
        code = self._driver.cuMemcpyDtoHAsync_v2(
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(self.stream),
        )
        self._check(code, "copy from the GPU")

    def wait(self) -> None:
        """Wait for everything on the stream."""
        self._check(self._driver.cuStreamSynchronize(ctypes.c_void_p(self.stream)), "the GPU")

    @contextmanager
    def captured(self) -> Iterator[Capture]:
        """Record what the block does on the stream instead of doing it.

        The graph is there after the block; it is None where the work cannot be recorded, which
        the driver says at the end of a capture. The stream is usable again either way.
        """
        capture = Capture()
        stream = ctypes.c_void_p(self.stream)
        self._check(
            self._driver.cuStreamBeginCapture_v2(stream, _THREAD_LOCAL), "cuStreamBeginCapture"
        )
        try:
            yield capture
        finally:
            made = ctypes.c_void_p()
            code = self._driver.cuStreamEndCapture(stream, ctypes.byref(made))
        if code != 0 or not made.value:
            return
        executable = ctypes.c_void_p()
        code = self._driver.cuGraphInstantiateWithFlags(
            ctypes.byref(executable), made, ctypes.c_ulonglong(0)
        )
        # The executable stands alone: what it was made from is no longer needed.
        self._driver.cuGraphDestroy(made)
        if code == 0:
            capture.graph = Graph(self, int(executable.value or 0))

    def launch(self, executable: int) -> None:
        """Run an executable graph on the stream."""
        code = self._driver.cuGraphLaunch(ctypes.c_void_p(executable), ctypes.c_void_p(self.stream))
        self._check(code, "cuGraphLaunch")

    def destroy_graph(self, executable: int) -> None:
        """Give an executable graph back, after what the stream holds."""
        self.wait()
        self._check(
            self._driver.cuGraphExecDestroy(ctypes.c_void_p(executable)), "cuGraphExecDestroy"
        )

    def close(self) -> None:
        """Free what is left and release the context."""
        for address in list(self._owned):
            self.free(address)
        self._driver.cuStreamDestroy_v2(ctypes.c_void_p(self.stream))
        self._driver.cuDevicePrimaryCtxRelease_v2(self._device)

    def _check(self, code: int, what: str) -> None:
        if code != 0:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            why = (text.value or b"unknown error").decode(errors="replace")
            raise SsmExportError(
                errors.RUNNER_FAILED,
                f"{what} failed: {why} (CUDA error {code})",
                fix="ssm-export doctor shows the driver, the GPU and its memory",
            )


class Graph:
    """Recorded work that is launched as one call, with the addresses that it was recorded with."""

    def __init__(self, device: Device, executable: int) -> None:
        self._device = device
        self._executable = executable

    def launch(self) -> None:
        """Run it on the device's stream."""
        self._device.launch(self._executable)

    def close(self) -> None:
        """Give it back."""
        self._device.destroy_graph(self._executable)


class Capture:
    """What a capture came to: a graph, or None."""

    def __init__(self) -> None:
        self.graph: Graph | None = None
