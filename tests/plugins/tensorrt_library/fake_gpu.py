"""A GPU of the tests: the fake driver, and Triton's interpreter for what is launched on it."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from typing import Any

import torch

from ssm_export_plugins.container import Image, section_of, write
from ssm_export_plugins.plan import Kernel, Plan

CAPABILITY, SHARED_MEMORY = 87, 166_912
EXTRA = 2
"""Null pointers after a kernel's arguments, as Triton has them."""


class _Launch(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_char_p),
        ("image", ctypes.c_int32),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_memory", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(ctypes.c_void_p)),
    )


@dataclass(frozen=True)
class Launched:
    """What the driver was asked to launch."""

    entry: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_memory: int
    stream: int


class FakeGpu:
    """Its memory is the tensors given to :meth:`address`; images say which kernel they are."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.fake_history.restype = ctypes.c_char_p
        library.fake_allocated.restype = ctypes.c_uint64
        self._kernels: dict[int, tuple[Kernel, int]] = {}
        self._numbers = itertools.count(1)
        self._memory: list[torch.Tensor] = []
        self.launches: list[Launched] = []
        self.error: BaseException | None = None
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Launch))
        self._callback = kind(self._launched)
        library.fake_callback(self._callback)

    def reset(self) -> None:
        """No failures, launches or memory, one context on one chip; raises what a launch did."""
        for name in ("cuInit", "cuModuleLoadDataEx", "cuModuleGetFunction", "cuLaunchKernel",
                     "cuFuncSetAttribute", "cuCtxGetCurrent", "cuMemAlloc",
                     "cuMemsetD8Async"):  # fmt: skip
            self.fail(name, 0)
        self.device(CAPABILITY)
        self.context(1)
        self._memory.clear()
        self.launches.clear()
        self.history()
        error, self.error = self.error, None
        if error is not None:
            raise error

    def device(self, capability: int, shared_memory: int = SHARED_MEMORY) -> None:
        self._library.fake_device(capability, shared_memory)

    def context(self, context: int) -> None:
        """The current context of every thread; 0 for none."""
        self._library.fake_context(context)

    def fail(self, function: str, error: int) -> None:
        """Let a function of the driver give an error; 0 lets it work again."""
        self._library.fake_failure(function.encode(), error)

    def history(self) -> dict[str, int]:
        """How often each function of the driver was called since the last time."""
        lines = self._library.fake_history().decode().splitlines()
        return {name: int(times) for name, times in (line.split() for line in lines)}

    def modules(self) -> int:
        """How many modules are loaded."""
        return self._library.fake_modules()

    def allocations(self) -> int:
        """How many allocations there are."""
        return self._library.fake_allocations()

    def section(
        self, plan: Plan, capabilities: tuple[int | str, ...] = (CAPABILITY,), **image: Any
    ) -> bytes:
        """A section of a plan whose images say which of its kernels they are.

        ``capabilities`` are those of cubins, or ``ptx``; ``image`` replaces what an image says.
        """
        images = []
        for index, kernel in enumerate(plan.kernels()):
            number = next(self._numbers)
            shared = image.get("shared", 1024 * (index + 1))
            self._kernels[number] = (kernel, shared)
            for one in capabilities:
                kind = "ptx" if one == "ptx" else "cubin"
                facts = {
                    "index": index,
                    "entry": kernel.name,
                    "kind": kind,
                    "capability": 80 if kind == "ptx" else one,
                    "data": f"FAKE {one} {number}\0".encode(),
                    "shared": shared,
                    "threads": 32 * kernel.num_warps,
                    "registers": 40,
                    "extra": EXTRA,
                }
                images.append(Image(**{**facts, **image}))
        return write(section_of(plan, images, ("0.1.0", "3.9.0")))

    def address(self, tensor: torch.Tensor) -> int:
        """The address of a tensor, which launches may now read and write."""
        assert tensor.is_contiguous()
        self._memory.append(tensor)
        return tensor.data_ptr()

    def _launched(self, pointer: Any) -> int:
        try:
            self._run(pointer.contents)
        except BaseException as error:
            self.error = self.error or error
            return 719
        return 0

    def _run(self, launch: _Launch) -> None:
        kernel, shared = self._kernels[launch.image]
        assert launch.entry.decode() == kernel.name
        block = tuple(launch.block)
        assert block == (32 * kernel.num_warps, 1, 1)
        assert launch.shared_memory == shared
        grid = tuple(launch.grid)
        self.launches.append(
            Launched(kernel.name, grid, block, launch.shared_memory, launch.stream or 0)
        )
        values: dict[str, Any] = dict(kernel.constants)
        names = [name for name in kernel.function.arg_names if name not in values]
        for position, name in enumerate(names):
            at = launch.parameters[position]
            if name in kernel.pointers:
                address = ctypes.c_uint64.from_address(at).value
                values[name] = self._tensor(address, kernel.pointers[name])
            else:
                values[name] = ctypes.c_int32.from_address(at).value
        for position in range(len(names), len(names) + EXTRA):
            assert ctypes.c_uint64.from_address(launch.parameters[position]).value == 0
        kernel.function[grid](**values, num_warps=kernel.num_warps, num_stages=kernel.num_stages)

    def _tensor(self, address: int, kind: str) -> torch.Tensor:
        """What begins at an address, to the end of the tensor it is in."""
        for tensor in self._memory:
            start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
            if start <= address < start + size:
                raw = (ctypes.c_ubyte * (start + size - address)).from_address(address)
                return torch.frombuffer(raw, dtype=getattr(torch, kind))
        size = self._library.fake_allocated(ctypes.c_uint64(address))
        if size:
            raw = (ctypes.c_ubyte * size).from_address(address)
            return torch.frombuffer(raw, dtype=getattr(torch, kind))
        raise AssertionError(f"a kernel was given {address:#x}, where there is nothing")
