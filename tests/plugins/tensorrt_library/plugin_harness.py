"""Drives plugins through the C++ harness, in the order and with the arguments of TensorRT."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssm_export_plugins.library import NAME

DYNAMIC = -1
LINEAR_FORMAT, OTHER_FORMAT = 0, 1
TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bfloat16": 7, "int64": 8}
"""TensorRT's numbers of types."""


class Phase(enum.IntEnum):
    BUILD = 0
    RUNTIME = 1


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
        ("min", ctypes.c_int64 * 8),
        ("max", ctypes.c_int64 * 8),
    )


class _Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Tensor:
    """A tensor of a node; no ``shape`` for an optional input that is left out."""

    type: str
    shape: tuple[int, ...]
    min: tuple[int, ...] = ()
    max: tuple[int, ...] = ()
    format: int = LINEAR_FORMAT

    def raw(self) -> _Tensor:
        made = _Tensor(TYPES[self.type], self.format, len(self.shape) or -1)
        for name in ("shape", "min", "max"):
            for axis, size in enumerate(getattr(self, name) or self.shape):
                getattr(made, name)[axis] = size
        return made


FieldValue = bytes | str | int | float


@dataclass
class Fields:
    """Plugin fields as a parser makes them; text gets no zero at its end, bytes neither."""

    values: Mapping[str, FieldValue]
    _kept: list[Any] = field(default_factory=list)

    def raw(self) -> ctypes.Array[_Field]:
        made = (_Field * max(len(self.values), 1))()
        for i, (name, value) in enumerate(self.values.items()):
            data: Any
            if isinstance(value, (bytes, str)):
                text = value.encode() if isinstance(value, str) else value
                data, kind, length = ctypes.create_string_buffer(text, len(text)), 6, len(text)
            elif isinstance(value, int):
                data, kind, length = ctypes.c_int32(value), 5, 1
            else:
                data, kind, length = ctypes.c_float(value), 1, 1
            self._kept.append(data)
            address = ctypes.cast(ctypes.pointer(data), ctypes.c_void_p)
            made[i] = _Field(name.encode(), address, kind, length)
        return made


def _raw(tensors: Sequence[Tensor]) -> ctypes.Array[_Tensor]:
    return (_Tensor * max(len(tensors), 1))(*(one.raw() for one in tensors))


class Plugin:
    """One plugin object; every method is the plugin's own of about that name."""

    def __init__(self, harness: Harness, pointer: int) -> None:
        self._harness, self._library, self._pointer = harness, harness.library, pointer

    def clone(self) -> Plugin:
        return self._harness.wrap(self._library.harness_clone(self._pointer))

    def attach(self) -> Plugin | None:
        pointer = self._library.harness_attach(self._pointer)
        return self._harness.wrap(pointer) if pointer else None

    def destroy(self) -> None:
        self._harness.plugins.remove(self)
        self._library.harness_destroy(self._pointer)

    def outputs(self) -> int:
        return self._library.harness_outputs(self._pointer)

    def output_types(self, types: Sequence[str], outputs: int = 2) -> list[str] | None:
        given = (ctypes.c_int32 * len(types))(*(TYPES[name] for name in types))
        made = (ctypes.c_int32 * outputs)()
        if self._library.harness_output_types(self._pointer, given, len(types), made, outputs):
            return None
        names = {number: name for name, number in TYPES.items()}
        return [names[number] for number in made]

    def output_shapes(self, inputs: Sequence[Tensor], outputs: int = 2) -> str | None:
        """Each output's sizes; one that is an input's as INPUT.AXIS."""
        made = self._library.harness_output_shapes(
            self._pointer, _raw(inputs), len(inputs), outputs
        )
        return made.decode() if made is not None else None

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        return self._library.harness_supports(
            self._pointer, position, _raw(tensors), inputs, len(tensors) - inputs
        )

    def _call(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        return getattr(self._library, f"harness_{name}")(
            self._pointer, _raw(inputs), len(inputs), _raw(outputs), len(outputs)
        )

    def configure(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
        return self._call("configure", inputs, outputs) == 0

    def workspace(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        return self._call("workspace", inputs, outputs)

    def shapes(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
        return self._call("shapes", inputs, outputs) == 0

    def enqueue(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        read: Sequence[int],
        written: Sequence[int],
        workspace: int = 0,
        stream: int = 0,
    ) -> bool:
        """Addresses in the order of the tensors, 0 for an input that is left out."""
        addresses = [(ctypes.c_void_p * len(each))(*each) for each in (read, written)]
        failed = self._library.harness_enqueue(
            self._pointer, _raw(inputs), len(inputs), _raw(outputs), len(outputs),
            *addresses, ctypes.c_void_p(workspace), ctypes.c_void_p(stream),
        )  # fmt: skip
        return failed == 0

    def serialize(self) -> dict[str, FieldValue]:
        fields = (_Field * 8)()
        count = self._library.harness_serialize(self._pointer, fields, len(fields))
        assert 0 <= count <= len(fields)
        made: dict[str, FieldValue] = {}
        for one in fields[:count]:
            data = ctypes.string_at(one.data, one.length * (1 if one.type == 6 else 4))
            made[one.name.decode()] = data if one.type == 6 else int.from_bytes(data, "little")
        return made


class Harness:
    """The harness with the plugin library of one build folder."""

    def __init__(self, built: Path) -> None:
        self.library = ctypes.CDLL(str(built / "libssm_export_harness.so"))
        self.plugins: list[Plugin] = []
        for name in ("create", "clone", "attach"):
            getattr(self.library, f"harness_{name}").restype = ctypes.c_void_p
        for name in ("log", "creators", "output_shapes"):
            getattr(self.library, f"harness_{name}").restype = ctypes.c_char_p
        for name in ("clone", "attach", "destroy", "outputs"):
            getattr(self.library, f"harness_{name}").argtypes = (ctypes.c_void_p,)
        self.library.harness_supports.restype = ctypes.c_bool
        self.library.harness_open.restype = ctypes.c_bool
        self.library.harness_workspace.restype = ctypes.c_size_t
        assert self.library.harness_open(str(built / NAME).encode()), self.log()

    def wrap(self, pointer: int) -> Plugin:
        plugin = Plugin(self, ctypes.c_void_p(pointer))
        self.plugins.append(plugin)
        return plugin

    def log(self) -> str:
        """The messages since the last call; each line begins with its severity."""
        return self.library.harness_log().decode(errors="replace")

    def errors(self) -> str:
        """The errors among them."""
        lines = self.log().splitlines()
        return "\n".join(line for line in lines if line.startswith("error "))

    def creators(self) -> list[list[str]]:
        """Name, version, namespace and fields of every creator."""
        lines = self.library.harness_creators().decode().splitlines()
        return [line.split(" ") for line in lines]

    def create(
        self,
        op: str,
        fields: Mapping[str, FieldValue],
        phase: Phase = Phase.BUILD,
        namespace: str = "ssm_export",
        node: str = "layer.0",
    ) -> Plugin | None:
        given = Fields(fields)
        pointer = self.library.harness_create(
            op.encode(), namespace.encode(), node.encode(), given.raw(), len(fields), int(phase)
        )
        return self.wrap(pointer) if pointer else None

    def destroy_all(self) -> None:
        for plugin in list(self.plugins):
            plugin.destroy()
