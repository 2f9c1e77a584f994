"""Reader of ``.safetensors`` files: the library checks the header, a tensor is one plain read.

A file is 8 bytes (the header's length, little-endian), the header (JSON: name to dtype, shape and
begin and end within the data) and the data. Reading goes by ``seek`` and ``readinto`` rather than
by the library's memory map, so that tensors read and dropped leave no pages of the file resident,
and a file larger than the memory can be opened.
"""

from __future__ import annotations

import json
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_export import errors
from ssm_export.checkpoints.checkpoint import LazyTensor
from ssm_export.errors import SsmExportError, missing_package

if TYPE_CHECKING:
    import torch

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The file's names of types to torch's."""

_REMEDY = "copy or download the file again"


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file, by the names in the file; reads the header only.

    Raises:
        SsmExportError: ``CORRUPT_WEIGHTS`` naming the file; ``MISSING_PACKAGE``.
    """
    header, begin = _read_header(path)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise corrupt(path, f"'{name}' has type {entry['dtype']}, which cannot be read here")
        shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
        offset = begin + entry["data_offsets"][0]
        reader = partial(_read, path, offset, shape, dtype, name)
        tensors[name] = LazyTensor(name, shape, dtype, str(path), reader)
    return tensors


def corrupt(path: Path, what: str) -> SsmExportError:
    """The error for a weights file that cannot be what was saved."""
    if _is_lfs_pointer(path):
        what = "the file is a Git LFS pointer, the weights themselves were not downloaded"
        return SsmExportError(
            errors.CORRUPT_WEIGHTS, what, where=str(path), fix="git lfs pull in its repository"
        )
    return SsmExportError(errors.CORRUPT_WEIGHTS, what, where=str(path), fix=_REMEDY)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, checked by the library, and the offset at which the data begins."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise missing_package("safetensors", "export", f"reading {path.name}") from error
    try:
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            return json.loads(stream.read(length)), 8 + length
    except (SafetensorError, ValueError, OSError) as error:
        size = path.stat().st_size if path.is_file() else 0
        what = f"{size} bytes that are no complete safetensors file ({error})"
        raise corrupt(path, what) from error


def _read(path: Path, offset: int, shape: tuple[int, ...], dtype: str, name: str) -> torch.Tensor:
    import torch

    kind = getattr(torch, dtype)
    if prod(shape) == 0:
        return torch.empty(shape, dtype=kind)
    data = torch.empty(prod(shape) * kind.itemsize, dtype=torch.uint8)
    with path.open("rb", buffering=0) as stream:
        stream.seek(offset)
        view = data.numpy().data
        while view:
            got = stream.readinto(view)
            if not got:
                raise corrupt(path, f"the file ends inside '{name}'")
            view = view[got:]
    return data.view(kind).reshape(shape)


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(40).startswith(b"version https://git-lfs")
    except OSError:
        return False
