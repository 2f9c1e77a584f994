"""What the checks of standard operators share: types, ranks and static sizes of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import OpSpec

Size = int | str | None
Shape = Sequence[Size]

FLOATS: Final = ("float32", "float16", "bfloat16")


def refuse(spec: OpSpec, what: str) -> NoReturn:
    """Raise ``BAD_OPERATOR_CALL`` for an operator."""
    raise SsmExportError(errors.BAD_OPERATOR_CALL, what, where=spec.name)


def check_ports(spec: OpSpec, shapes: Mapping[str, Shape], types: Mapping[str, str]) -> None:
    """Refuse missing and unknown inputs, wrong ranks, and types that the schema does not allow."""
    ports = {port.name: port for port in spec.inputs}
    for name in sorted(set(shapes) - set(ports)):
        refuse(spec, f"there is no input '{name}'")
    for name, port in ports.items():
        if name not in shapes:
            if not port.optional:
                refuse(spec, f"input '{name}' is missing")
            continue
        if len(shapes[name]) != len(port.axes):
            shape = tuple(shapes[name])
            refuse(spec, f"'{name}' has shape {shape}, the standard has rank {len(port.axes)}")
        if types[name] not in FLOATS:
            refuse(spec, f"'{name}' is {types[name]}, it may be {', '.join(FLOATS)}")


def common_type(spec: OpSpec, letter: str, types: Mapping[str, str], default: str = "") -> str:
    """The one type of all inputs whose port has this type letter."""
    found = {p.name: types[p.name] for p in spec.inputs if p.type == letter and p.name in types}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"'{name}' {kind}" for name, kind in found.items())
        refuse(spec, f"inputs of one type differ: {listed}")
    return next(iter(found.values()), default)


def known(spec: OpSpec, what: str, sizes: Mapping[str, Size]) -> int:
    """A size from the inputs that tell it.

    Args:
        spec: the operator.
        what: the size in words.
        sizes: where it is told to what is told; anything but an integer tells nothing.

    Raises:
        SsmExportError: none is static, or two disagree, or it is below 1.
    """
    static = {where: size for where, size in sizes.items() if isinstance(size, int)}
    if not static:
        places = " or ".join(sizes)
        refuse(spec, f"{what} is not static; the kernels are made for one: give {places} a size")
    if len(set(static.values())) > 1:
        listed = ", ".join(f"{where} says {size}" for where, size in static.items())
        refuse(spec, f"{what} is not one number: {listed}")
    size = next(iter(static.values()))
    if size < 1:
        refuse(spec, f"{what} is {size}")
    return size
