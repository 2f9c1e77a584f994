"""Reader of ``.bin`` files: ``torch.load`` with ``weights_only``, mapped where the format allows.

Nothing of the file is executed. Files in torch's older, unzipped format cannot be mapped and are
read whole.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_export import errors
from ssm_export.checkpoints.checkpoint import LazyTensor
from ssm_export.checkpoints.safetensors_files import corrupt
from ssm_export.errors import SsmExportError, missing_package

if TYPE_CHECKING:
    import torch

_ZIP_MAGIC = b"PK\x03\x04"
_HARMLESS_MODULES = ("torch", "collections")
_RESIDENT_LIMIT = 32 << 20
_TEXT_OPCODES = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")


def open_torch_file(path: Path) -> tuple[dict[str, LazyTensor], Callable[[], None]]:
    """The tensors of one file by the names in it, and what lets go of the file.

    Raises:
        SsmExportError: ``UNSAFE_PICKLE`` when the file asks for code to be run, ``CORRUPT_WEIGHTS``
            when it is truncated or holds something else than tensors; ``MISSING_PACKAGE``.
    """
    file = _TorchFile(path)
    tensors = {
        name: LazyTensor(
            name,
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            str(path),
            partial(file.read, name),
        )
        for name, tensor in file.state.items()
    }
    return tensors, file.close


class _TorchFile:
    """A file that is mapped, and mapped anew when too many of its pages have become resident."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state, self.mapped = _load(path)
        self.resident = 0

    def read(self, name: str) -> torch.Tensor:
        import torch

        tensor = self.state[name].detach().clone(memory_format=torch.contiguous_format)
        self.resident += tensor.nbytes
        if self.mapped and self.resident > _RESIDENT_LIMIT:
            self.state, self.mapped = _load(self.path)
            self.resident = 0
        return tensor

    def close(self) -> None:
        self.state = {}


def _load(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors, and whether they are mapped."""
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "export", f"reading {path.name}") from error
    try:
        with path.open("rb") as stream:
            zipped = stream.read(4) == _ZIP_MAGIC
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols, which is ours to judge
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _unsafe_or_corrupt(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise corrupt(path, f"torch cannot read the file ({reason})") from error
    return _checked(path, content), zipped


def _checked(path: Path, content: Any) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(content, dict):
        raise corrupt(path, f"the file holds a {type(content).__name__}, not named tensors")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            kind = type(value).__name__
            raise corrupt(path, f"'{name}' is a {kind}; every entry has to be a tensor")
    return dict(content)


def _unsafe_or_corrupt(path: Path, error: pickle.UnpicklingError) -> SsmExportError:
    names = foreign_globals(path)
    if not names and "Unsupported" not in str(error):
        return corrupt(path, "the file's pickle is broken")
    asked = ", ".join(names) if names else "something else than tensors"
    return SsmExportError(
        errors.UNSAFE_PICKLE,
        f"loading the file would call {asked}",
        where=str(path),
        why="a pickle can run any program; only tensors are accepted",
        fix="ask its author for a .safetensors file, and don't load this one elsewhere",
    )


def foreign_globals(path: Path) -> list[str]:
    """The functions and classes outside torch that a pickle names, found without running it."""
    names: list[str] = []
    texts: list[str] = []
    try:
        stream = io.BytesIO(_pickle_bytes(path))
        while stream.tell() < len(stream.getbuffer()):  # older files hold several pickles in a row
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    names.append(".".join(str(argument).split(" ")))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(texts[-2:]))
                elif opcode.name in _TEXT_OPCODES:
                    texts.append(str(argument))
    except (ValueError, KeyError, zipfile.BadZipFile, OSError):
        pass  # what was seen before the file broke off is still worth telling
    return [name for name in names if name.split(".")[0] not in _HARMLESS_MODULES]


def _pickle_bytes(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), "data.pkl")
        return archive.read(name)
