"""What a file of kernel images (``.ssmk``) holds, by operator call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_export.errors import SsmExportError
from ssm_export.resources import load_plugins

if TYPE_CHECKING:
    from ssm_export_plugins.container import Section

PACK_SUFFIX = ".ssmk"


@dataclass(frozen=True)
class ImageFacts:
    """Machine code or PTX of one kernel.

    Attributes:
        name: of the kernel.
        kind: ``cubin`` or ``ptx``.
        compute_capability: what it was compiled for, such as ``8.7``.
        registers: of a thread.
        shared: dynamic shared memory of a block in bytes.
        threads: of a block.
        bytes: of the image, uncompressed.
    """

    name: str
    kind: str
    compute_capability: str
    registers: int
    shared: int
    threads: int
    bytes: int


@dataclass(frozen=True)
class PackFacts:
    """The kernels of one operator call.

    Attributes:
        op, version: the operator.
        ssm_export, triton: versions that made it.
        attributes: of the call.
        inputs, outputs: name to type and shape.
        images: the kernels, once for each chip.
    """

    op: str
    version: int
    ssm_export: str
    triton: str
    attributes: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    images: tuple[ImageFacts, ...]


def read_pack(path: Path) -> tuple[PackFacts, ...]:
    """The operator calls whose kernels a file holds.

    Raises:
        SsmExportError: ``BAD_KERNEL_IMAGE`` naming the file; ``MISSING_PACKAGE`` where the
            installation has no GPU code.
    """
    load_plugins()
    from ssm_export_plugins import container

    try:
        sections = container.read(path.read_bytes())
    except SsmExportError as error:
        raise SsmExportError(
            error.code, error.what, where=str(path), why=error.why, fix=error.fix
        ) from error
    return tuple(_pack(section) for section in sections)


def _pack(section: Section) -> PackFacts:
    def ports(operands: Any) -> dict[str, str]:
        return {o.name: f"{o.type} ({', '.join(map(str, o.shape))})" for o in operands}

    images = (
        ImageFacts(
            image.entry,
            image.kind,
            f"{image.capability // 10}.{image.capability % 10}",
            image.registers,
            image.shared,
            image.threads,
            len(image.data),
        )
        for image in section.images
    )
    made_by, triton = section.made
    return PackFacts(
        section.op,
        section.version,
        made_by,
        triton,
        dict(section.attributes),
        ports(section.inputs),
        ports(section.outputs),
        tuple(images),
    )
