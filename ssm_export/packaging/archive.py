"""The archive of a pack: a plain tar whose bytes depend on its content alone.

What goes to a board is quantized or half precision, which hardly compresses (int8 codes of the demo
by 9 %), and a board unpacks a plain tar as fast as its disk writes, so there is no compression.
``pack.json`` comes first and has the size and the SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from ssm_export import errors
from ssm_export.bundle import FileEntry, disk_errors, sha256
from ssm_export.errors import SsmExportError
from ssm_export.progress import SILENT, Progress, Task

SCHEMA: Final = "ssm-export/pack@1"
INDEX: Final = "pack.json"
_LONG_AGO: Final = 315532800
"""1980-01-01: the one date of all files; tar warns of 1970."""
_COPY_AGAIN: Final = "copy the archive again from where it was made, or package again"


@dataclass(frozen=True)
class Packed:
    """A file that goes into a pack.

    Attributes:
        path: in the pack, with ``/`` between folders.
        source: the file, or its content.
        executable: whether it is to be run.
    """

    path: str
    source: Path | bytes
    executable: bool = False

    def entry(self) -> FileEntry:
        """Its line in the index."""
        if isinstance(self.source, bytes):
            digest = hashlib.sha256(self.source).hexdigest()
            return FileEntry(self.path, len(self.source), digest)
        return FileEntry(self.path, self.source.stat().st_size, sha256(self.source))


def write_archive(
    output: Path,
    top: str,
    index: dict[str, Any],
    files: Sequence[Packed],
    progress: Progress = SILENT,
) -> str:
    """Write a pack under a temporary name and rename it when it is whole.

    Args:
        output: the archive to make.
        top: name of the one folder in it.
        index: members of ``pack.json``; ``schema`` and ``files`` are added.
        files: everything else; the order does not matter.
        progress: shows bytes, which are read twice.

    Returns:
        SHA-256 of the archive.

    Raises:
        SsmExportError: ``DISK_FULL``, or ``HASH_MISMATCH`` when a file changes meanwhile.
    """
    ordered = sorted(files, key=lambda file: (isinstance(file.source, Path), file.path))
    total = sum(_size(file) for file in ordered)
    task = progress.task("packing", 2 * total)
    entries = []
    for file in ordered:
        entries.append(file.entry())
        task.advance(_size(file))
    document = {"schema": SCHEMA, **index, "files": [asdict(entry) for entry in entries]}
    text = (json.dumps(document, indent=1) + "\n").encode()
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with disk_errors(output.parent), partial.open("wb") as stream:
            hashed: Any = _Hashed(stream)  # tarfile wants its `write` alone
            with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.GNU_FORMAT) as tar:
                _add(tar, f"{top}/{INDEX}", io.BytesIO(text), len(text), False)
                for file, entry in zip(ordered, entries, strict=True):
                    with _opened(file) as content:
                        counted = _Counted(content, task)
                        _add(tar, f"{top}/{file.path}", counted, entry.bytes, file.executable)
                    if counted.digest.hexdigest() != entry.sha256:
                        raise SsmExportError(
                            errors.HASH_MISMATCH,
                            f"'{file.path}' changed while it was packed",
                            fix="let no other command write to the bundle meanwhile",
                        )
            stream.flush()
            os.fsync(stream.fileno())
        with disk_errors(output.parent):
            os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return str(hashed.digest.hexdigest())


def check_archive(path: str | os.PathLike[str], progress: Progress = SILENT) -> dict[str, Any]:
    """Hold every file of a pack against its index, without unpacking.

    Returns:
        the members of ``pack.json``.

    Raises:
        SsmExportError: ``NO_SUCH_PATH``; ``NOT_A_PACK`` for another file or the beginning of a
            pack; ``PACK_CHANGED`` for a file that is missing, added or changed.
    """
    archive = Path(path)
    if not archive.is_file():
        raise SsmExportError(
            errors.NO_SUCH_PATH, f"there is no file '{archive}'", fix="give a pack's .tar"
        )
    task = progress.task("checking", archive.stat().st_size)
    try:
        with tarfile.open(archive, mode="r:") as tar:
            first = tar.next()
            if first is None or not first.isfile() or not first.name.endswith(f"/{INDEX}"):
                raise ValueError(f"its first file is not {INDEX}")
            stream = tar.extractfile(first)
            assert stream is not None
            index: dict[str, Any] = json.loads(stream.read())
            if index["schema"] != SCHEMA:
                raise ValueError(f"its schema is {index['schema']}")
            wanted = {entry["path"]: FileEntry(**entry) for entry in index["files"]}
            top = first.name.removesuffix(INDEX)
            for member in tar:
                if member is first:
                    continue
                entry = wanted.pop(member.name.removeprefix(top), None)
                _check_member(tar, member, entry, archive, task)
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise SsmExportError(
            errors.NOT_A_PACK,
            f"it is no pack of this tool, or only a part of one: {error}",
            where=str(archive),
            fix=_COPY_AGAIN,
        ) from error
    if wanted:
        raise SsmExportError(
            errors.NOT_A_PACK,
            f"it ends before '{sorted(wanted)[0]}'",
            where=str(archive),
            fix=_COPY_AGAIN,
        )
    return index


def _check_member(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    entry: FileEntry | None,
    archive: Path,
    task: Task,
) -> None:
    stream = tar.extractfile(member) if member.isfile() else None
    if entry is None or stream is None:
        what = f"it holds '{member.name}', which was not packed"
    else:
        digest = hashlib.sha256()
        while block := stream.read(1 << 22):
            digest.update(block)
            task.advance(len(block))
        if digest.hexdigest() == entry.sha256:
            return
        what = f"'{entry.path}' is not the file that was packed (its SHA-256 differs)"
    raise SsmExportError(errors.PACK_CHANGED, what, where=str(archive), fix=_COPY_AGAIN)


class _Hashed:
    """A file to write whose bytes are hashed on their way."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._stream.write(data)


class _Counted:
    """A file to read that is hashed and moves a bar."""

    def __init__(self, stream: IO[bytes], task: Task) -> None:
        self._stream = stream
        self._task = task
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        self._task.advance(len(data))
        return data


@contextmanager
def _opened(file: Packed) -> Iterator[IO[bytes]]:
    if isinstance(file.source, bytes):
        yield io.BytesIO(file.source)
    else:
        with file.source.open("rb") as stream:
            yield stream


def _add(tar: tarfile.TarFile, name: str, content: Any, size: int, executable: bool) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mtime = _LONG_AGO
    member.mode = 0o755 if executable else 0o644
    tar.addfile(member, content)


def _size(file: Packed) -> int:
    return len(file.source) if isinstance(file.source, bytes) else file.source.stat().st_size
