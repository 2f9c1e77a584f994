"""Compiled kernels kept between runs, and how a call is written down for the compiler."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ssm_export
from ssm_export import ops
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call
from ssm_export_plugins import container
from ssm_export_plugins.plan import Chip

ASSEMBLERS: Final = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")
"""Triton's settings that a user may need: NVIDIA's assembler, where Triton comes without it."""


@dataclass(frozen=True)
class Entry:
    """A compiled call: the plan's number, its section, and the report."""

    choice: int
    blob: bytes
    report: Mapping[str, Any]


def request(op: str, call: Call, chip: Chip, ptx: bool) -> dict[str, Any]:
    """A call and a chip as JSON."""
    return {
        "op": op,
        "present": sorted(call.present),
        "attributes": dict(call.attributes),
        "sizes": dict(call.sizes),
        "types": dict(call.types),
        "capability": list(chip.capability),
        "shared_memory": chip.shared_memory,
        "multiprocessors": chip.multiprocessors,
        "ptx": ptx,
    }


def call_of(request: Mapping[str, Any]) -> tuple[str, Call, Chip, bool]:
    """What :func:`request` wrote down: op type, call, chip, whether PTX is wanted."""
    call = Call(
        frozenset(request["present"]), request["attributes"], request["sizes"], request["types"]
    )
    major, minor = request["capability"]
    chip = Chip((major, minor), request["shared_memory"], request["multiprocessors"])
    return request["op"], call, chip, request["ptx"]


def digest(op: str, call: Call, chip: Chip, ptx: bool, triton: str) -> str:
    """A hash of everything that compiled kernels depend on."""
    parts = {
        "sources": _sources(),
        "ssm_export": ssm_export.__version__,
        "triton": triton,
        "assemblers": [os.environ.get(name, "") for name in ASSEMBLERS],
        **request(op, call, chip, ptx),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def _sources() -> str:
    here = Path(__file__).resolve().parent
    folders = (here, here / "kernels", Path(ops.__file__).resolve().parent)
    found = hashlib.sha256()
    for number, folder in enumerate(folders):
        for path in sorted(folder.glob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found.update(f"{number}/{path.name} {content}\n".encode())
    return found.hexdigest()


def folder() -> Path:
    """Where compiled kernels are kept: in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "ssm-export" / "kernels"


def load(key: str) -> Entry | None:
    """What is kept under a hash; None where that is nothing, or something damaged."""
    try:
        head, blob = (folder() / key).read_bytes().split(b"\n", 1)
        known = json.loads(head)
        if known["sha256"] != _check(known["choice"], known["report"], blob):
            return None
        container.read(blob)
        return Entry(known["choice"], blob, known["report"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SsmExportError):
        return None


def store(key: str, entry: Entry) -> None:
    """Keep an entry; a folder that cannot be written keeps nothing."""
    head = {
        "sha256": _check(entry.choice, entry.report, entry.blob),
        "choice": entry.choice,
        "report": entry.report,
    }
    try:
        folder().mkdir(parents=True, exist_ok=True)
        partial = folder() / f".{key}.{os.getpid()}.part"
        try:
            partial.write_bytes(json.dumps(head).encode() + b"\n" + entry.blob)
            os.replace(partial, folder() / key)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return


def _check(choice: int, report: Mapping[str, Any], blob: bytes) -> str:
    text = json.dumps([choice, report], sort_keys=True)
    return hashlib.sha256(text.encode() + b"\n" + blob).hexdigest()
