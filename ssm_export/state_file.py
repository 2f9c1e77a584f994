"""The file of a saved state.

It has the layout of safetensors, so any reader of that format reads it: eight bytes with the
length of a JSON header (little-endian), the header, padded with spaces to a multiple of 64 bytes,
then the tensors one after the other. Nothing in it is ever run. The tensors are the ``past_*``
arrays by their names, (S, …); ``logits`` (S,V) after the last token, where there are any; and
``tokens`` (S,) int64, how many tokens each row has read. The header's ``__metadata__`` has

====================  =============================================================================
``format``            ``ssm-export/state@2``
``family``            the model type
``weights_sha256``    of the bundle's one weights file, before any runtime packs it
``scheme_sha256``     of how weights and activations are quantized; empty for a float bundle
``states_sha256``     of the states' names, kinds, shapes, types, layouts and initial values
``rows``              which of the S stored rows each row is, as JSON: a fork stores its row once
``checksum``          SHA-256 of the header without this member and of each tensor's CRC-32
====================  =============================================================================

The three hashes tie a state to its model and to nothing else: a bundle of the same weights with
other graphs (another lowering, engine, runner, ragged or not) takes the state, a quantized or
retyped sibling does not. A CRC-32 (that of zlib, 32 bits little-endian) finds damage, words in
another order too, and proves no origin. It takes 11 ms for 25 MB (mamba-2.8b) and 66 ms for 172 MB
(mamba2-2.7b) on one core of an AMD EPYC; BLAKE2b takes 40 and 360 ms.

Schema 1, which no release has written, summed words and did not see their order; it is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import disk_errors
from ssm_export.errors import SsmExportError

FORMAT: Final = "ssm-export/state"
VERSION: Final = 2
_METADATA: Final = "__metadata__"
_ALIGNMENT: Final = 64
_MOST_HEADER: Final = 1 << 24
_TYPES: Final = {"F32": "<f4", "F16": "<f2", "I8": "<i1", "I64": "<i8"}
_NAMES: Final = {np.dtype(kind): name for name, kind in _TYPES.items()}

Tensors = dict[str, np.ndarray]


def write(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors, atomically, in the place of an older state.

    Raises:
        SsmExportError: as :func:`check_destination`, or ``DISK_FULL``.
    """
    check_destination(path)
    # Wide types first, so that every tensor lies at a multiple of its type's size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    arrays = {name: np.ascontiguousarray(array) for name, array in ordered}
    header = _header(metadata, arrays)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path.parent), temporary.open("wb") as stream:
            stream.write(header)
            for array in arrays.values():
                stream.write(_bytes(array))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, str], Tensors]:
    """The metadata of a file, and its tensors as read-only views of the mapped file.

    Raises:
        SsmExportError: ``NO_SUCH_PATH``, ``NO_PERMISSION``, ``BAD_STATE_FILE``,
            ``NEWER_SCHEMA``.
    """
    data = _mapped(path)
    header, start, version = _read_header(data, path)
    _check_version(version, path)
    try:
        tensors = _tensors(data, header, start)
        metadata = dict(header.pop(_METADATA))
        told = metadata.pop("checksum")
        if _checksum({_METADATA: metadata, **header}, tensors) != told:
            raise ValueError("its checksum is not that of its content")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(path, f"{error}") from error
    return metadata, tensors


def check_destination(path: Path) -> None:
    """Refuse what a state cannot be saved to, before the work is done that makes it."""
    if not path.parent.is_dir():
        raise SsmExportError(
            errors.NO_SUCH_PATH,
            f"there is no folder '{path.parent}' to save the state in",
            fix=f"mkdir -p {path.parent}",
        )
    if path.exists() and not (path.is_file() and _is_state(path)):
        raise SsmExportError(
            errors.OUTPUT_EXISTS,
            f"'{path}' exists and is no saved state, so it is not replaced",
            fix="give another file, or remove it first",
        )


def _is_state(path: Path) -> bool:
    try:
        _read_header(_mapped(path), path)
    except SsmExportError:
        return False
    return True


def _mapped(path: Path) -> mmap.mmap:
    try:
        # Asked before it is opened: opening a pipe waits for somebody to write into it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise unreadable(path, "it is a folder" if path.is_dir() else "it is no regular file")
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise SsmExportError(
            errors.NO_SUCH_PATH,
            f"there is no file '{path}'",
            fix="ssm-export generate BUNDLE PROMPT --save-state FILE writes one",
        ) from error
    except PermissionError as error:
        raise SsmExportError(
            errors.NO_PERMISSION,
            "it may not be read",
            where=str(path),
            fix=f"chmod u+r {path}, or give another file",
        ) from error
    except OSError as error:
        raise unreadable(path, f"{error.strerror or error}") from error
    except ValueError as error:  # a map of nothing
        raise unreadable(path, "it is empty") from error


def _read_header(data: mmap.mmap, path: Path) -> tuple[dict[str, Any], int, int]:
    """The header as it stands, where the tensors begin, and the version of the schema."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= _MOST_HEADER:
        raise unreadable(path, "it does not begin as one")
    if len(data) < 8 + size:
        raise unreadable(path, f"it ends after {len(data)} bytes, within its header of {size}")
    try:
        header = json.loads(data[8 : 8 + size])
        name, _, version = str(header[_METADATA]["format"]).partition("@")
        schema = int(version) if name == FORMAT else 0
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise unreadable(path, "its header is not one of ours") from error
    if name != FORMAT:
        raise unreadable(path, f"its format is '{name}', not '{FORMAT}'")
    return header, 8 + size, schema


def _check_version(version: int, path: Path) -> None:
    told = f"it has schema {version}, this release reads {VERSION}"
    if version > VERSION:
        raise SsmExportError(
            errors.NEWER_SCHEMA, told, where=str(path), fix="pip install --upgrade ssm-export"
        )
    if version < VERSION:
        raise SsmExportError(
            errors.BAD_STATE_FILE,
            told,
            where=str(path),
            why="the checksum of the older one misses some damage",
            fix="read the prompt again and save that: ssm-export generate BUNDLE PROMPT "
            "--save-state FILE",
        )


def _tensors(data: mmap.mmap, header: Mapping[str, Any], start: int) -> Tensors:
    """The tensors as views of the map; ``ValueError`` where the header does not fit the file."""
    entries = {name: entry for name, entry in header.items() if name != _METADATA}
    end = start + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    if len(data) != end:
        raise ValueError(f"it has {len(data)} bytes, its header says {end}")
    found: Tensors = {}
    for name, entry in entries.items():
        kind = np.dtype(_TYPES[entry["dtype"]])
        shape = tuple(int(size) for size in entry["shape"])
        first, last = (int(offset) for offset in entry["data_offsets"])
        count = math.prod(shape)
        if min(shape, default=1) < 0 or first < 0 or last - first != count * kind.itemsize:
            raise ValueError(f"the place of '{name}' is not one for {shape}")
        found[name] = np.frombuffer(data, kind, count, start + first).reshape(shape)
    return found


def _header(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> bytes:
    told = {"format": f"{FORMAT}@{VERSION}", **metadata}
    header: dict[str, Any] = {_METADATA: told}
    place = 0
    for name, array in tensors.items():
        offsets = [place, place + array.nbytes]
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        place = offsets[1]
    told["checksum"] = _checksum(header, tensors)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """See the table of this module; ``header`` has no checksum yet, or no longer."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in tensors.values():
        digest.update(zlib.crc32(_bytes(array)).to_bytes(4, "little"))
    return digest.hexdigest()


def unreadable(path: Path, what: str) -> SsmExportError:
    """The refusal of a file that holds no state."""
    return SsmExportError(
        errors.BAD_STATE_FILE,
        f"it cannot be read as a saved state: {what}",
        where=str(path),
        fix="copy it again from where it was made, or read the prompt again and save that",
    )


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
