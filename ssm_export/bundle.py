"""The bundle: the folder that stages hand each other, and its manifest.

A stage opens the bundle that the stage before wrote, adds files, and rewrites ``manifest.json``
last, atomically. A new bundle is written under a temporary name beside its destination and renamed
when it is complete (:func:`new_bundle`), so a failed or interrupted run leaves nothing that looks
finished.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError

SCHEMA_NAME: Final = "ssm-export/bundle"
SCHEMA_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "onnx/weights.data"
FORMS: Final = ("step", "prefill")
"""The two graphs of every bundle: one token, and any number of tokens."""
UNIFIED: Final = "unified"
"""The graph, and the engine, that serve as both forms with one copy of the weights; a bundle has it
where it holds scans as plugins."""
SSM: Final = "ssm"
"""Kind of a scan's state."""
SSM_SCALE: Final = "ssm_scale"
"""Kind of the scales of an int8 state: its numbers are codes times scales."""
_ITEM_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class StateSpec:
    """One recurrent state of the model, as a graph input and output.

    ``shape`` holds integers, and the name of the batch axis where the batch stands.
    ``layout`` spells the axes with the letters of the glossary, such as ``"B,D,N"``.
    ``kind`` is ``conv`` or ``ssm``; ``dtype`` one of ``float32``, ``float16``, ``bfloat16``. An
    ``ssm`` state of type ``int8`` holds codes. The state after it, of kind ``ssm_scale`` and of the
    same layer, holds a float32 scale for each block of the last axis: its last size counts them.
    """

    name_in: str
    name_out: str
    kind: str
    layer: int
    shape: tuple[int | str, ...]
    dtype: str
    layout: str
    initial_value: float = 0.0

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one batch row."""
        sizes = [size for size in self.shape if isinstance(size, int)]
        return math.prod(sizes) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its path relative to the bundle, its size and its SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ParityEntry:
    """One recorded case (``parity/<name>.npz``) made from the float64 torch reference.

    ``kind`` says what the case is for: ``prefill`` (whole prompt), ``split`` (a prompt in pieces),
    ``ragged`` (right-padded batch) or ``generate`` (greedy tokens).
    """

    name: str
    kind: str
    file: FileEntry
    batch: int
    tokens: int


@dataclass(frozen=True)
class EngineEntry:
    """An engine file and what it is tied to. ``ran`` is true only where it has been executed.

    ``form`` is ``step``, ``prefill``, or ``unified`` for both. ``lowering`` is that of the graph it
    was built from; ``library`` is the SHA-256 of the plugin library that it was built with.
    """

    form: str
    target: str
    engine: str
    file: FileEntry
    versions: dict[str, str]
    platform: str
    compute_capability: str
    profile: dict[str, list[int]]
    ran: bool
    note: str
    lowering: str = "native"
    library: str = ""


@dataclass
class Manifest:
    """What ``manifest.json`` holds. Everything a stage needs to know and nothing it can derive.

    Attributes:
        source: where the checkpoint came from: ``path``, ``layout``, ``weights_sha256``.
        family: the model type, such as ``mamba2``.
        sizes: sizes of the model by their letters or config names.
        precision: type of weights and activations: ``fp32``, ``fp16`` or ``bf16``.
        state_dtype: type of the SSM state: ``fp32``, ``fp16`` or ``int8``.
        logits: ``last`` or ``all`` positions.
        ragged: whether the graphs take ``sequence_lengths (B,)`` int32.
        states: the states in graph order.
        graphs: form -> lowering -> file; the lowering ``canonical`` is always there. The form
            ``unified`` has the lowerings ``plugin-<target>``, one for each that was asked for.
        lowering: the lowering that runners take by default, why, and what was measured.
        weights: the one file that every graph points into.
        packed_weights: lowering to a file of its own, where it packs weights in its own way.
        parity: the recorded vectors.
        rounding: kind of case to tensor to the error of the torch model itself in this precision,
            ``nmse`` and ``element``; see :mod:`ssm_export.verification.rounding`.
        measured: worst errors seen when the bundle was verified.
        engines: engines built so far.
        quantization: what was quantized how, and what it cost; empty for a float bundle.
        versions: versions of the tools that made the bundle.
        verified: whether the graphs passed verify when the bundle was written.
    """

    source: dict[str, str]
    family: str
    sizes: dict[str, int]
    precision: str
    state_dtype: str
    logits: str
    ragged: bool
    states: tuple[StateSpec, ...]
    graphs: dict[str, dict[str, FileEntry]]
    lowering: dict[str, Any]
    weights: FileEntry
    packed_weights: dict[str, FileEntry] = field(default_factory=dict)
    parity: tuple[ParityEntry, ...] = ()
    rounding: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    engines: tuple[EngineEntry, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    verified: bool = False
    quantization: dict[str, Any] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    """Files copied from the checkpoint: config, tokenizer."""

    def to_json(self) -> str:
        document = {"schema": f"{SCHEMA_NAME}@{SCHEMA_VERSION}", **dataclasses.asdict(self)}
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read a manifest; ``NEWER_SCHEMA`` or ``NOT_A_BUNDLE`` when it is not one of ours."""
        not_a_bundle = SsmExportError(
            errors.NOT_A_BUNDLE,
            "manifest.json is not a manifest of this tool",
            where=where,
            fix="ssm-export export CHECKPOINT -o BUNDLE",
        )
        try:
            document = json.loads(text)
            name, _, version = str(document.pop("schema")).partition("@")
            if name != SCHEMA_NAME:
                raise not_a_bundle
            if int(version) > SCHEMA_VERSION:
                raise SsmExportError(
                    errors.NEWER_SCHEMA,
                    f"manifest.json has schema {version}, this release reads {SCHEMA_VERSION}",
                    where=where,
                    fix="pip install --upgrade ssm-export",
                )
            known = {f.name for f in dataclasses.fields(cls)}
            fields = {key: value for key, value in document.items() if key in known}
            fields["states"] = tuple(
                StateSpec(**{**state, "shape": tuple(state["shape"])}) for state in fields["states"]
            )
            fields["graphs"] = {
                form: {lowering: FileEntry(**entry) for lowering, entry in graphs.items()}
                for form, graphs in fields["graphs"].items()
            }
            fields["weights"] = FileEntry(**fields["weights"])
            fields["packed_weights"] = {
                lowering: FileEntry(**entry)
                for lowering, entry in fields.get("packed_weights", {}).items()
            }
            fields["files"] = tuple(FileEntry(**entry) for entry in fields.get("files", ()))
            fields["parity"] = tuple(
                ParityEntry(**{**entry, "file": FileEntry(**entry["file"])})
                for entry in fields.get("parity", ())
            )
            fields["engines"] = tuple(
                EngineEntry(**{**entry, "file": FileEntry(**entry["file"])})
                for entry in fields.get("engines", ())
            )
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise not_a_bundle from error


class Bundle:
    """An open bundle: a folder and its manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check_hashes: bool = True) -> Bundle:
        """Open the bundle at ``path``; with ``check_hashes`` its graphs, weights and parity files
        must still be the ones that were verified (``HASH_MISMATCH`` otherwise)."""
        folder = Path(path)
        if not folder.exists():
            raise SsmExportError(
                errors.NO_SUCH_PATH,
                f"there is no folder '{folder}'",
                fix="ssm-export export CHECKPOINT -o BUNDLE makes one",
            )
        file = folder / MANIFEST
        if not file.is_file():
            raise SsmExportError(
                errors.NOT_A_BUNDLE,
                "the folder has no manifest.json",
                where=str(folder),
                fix="ssm-export export CHECKPOINT -o BUNDLE",
            )
        text = file.read_text(encoding="utf-8", errors="replace")
        bundle = cls(folder, Manifest.from_json(text, str(file)))
        if check_hashes:
            bundle.check_hashes()
        return bundle

    def file(self, entry: FileEntry) -> Path:
        """The path of a file of the manifest; ``MISSING_FILE`` where it is gone."""
        path = self.path / entry.path
        if not path.is_file():
            raise SsmExportError(
                errors.MISSING_FILE,
                f"the manifest names '{entry.path}', which is not there",
                where=str(self.path),
                fix="copy the bundle again, whole, or export again",
            )
        return path

    def graph_path(self, form: str, lowering: str | None = None) -> Path:
        """The ONNX file of a form (``step`` or ``prefill``), in a lowering or the default one."""
        graphs = self.manifest.graphs[form]
        chosen = lowering or str(self.manifest.lowering["chosen"])
        if chosen not in graphs:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"the {form} graph is not there as '{chosen}', only as {', '.join(sorted(graphs))}",
                where=str(self.path),
                fix="plugin graphs run in TensorRT: --runner tensorrt on the device"
                if chosen.startswith("plugin")
                else f"ssm-export export CHECKPOINT -o BUNDLE --lowering {chosen}",
            )
        return self.file(graphs[chosen])

    def check_hashes(self) -> None:
        """Compare every graph, the weights and the parity files with the manifest."""
        manifest = self.manifest
        entries = [manifest.weights, *manifest.packed_weights.values(), *manifest.files]
        entries += [entry for graphs in manifest.graphs.values() for entry in graphs.values()]
        entries += [parity.file for parity in manifest.parity]
        for entry in entries:
            path = self.file(entry)
            if path.stat().st_size != entry.bytes or sha256(path) != entry.sha256:
                raise SsmExportError(
                    errors.HASH_MISMATCH,
                    f"'{entry.path}' is not the file that was verified (its SHA-256 differs)",
                    where=str(self.path),
                    fix="export again, or copy the bundle again from where it was made",
                )

    def entry(self, relative: str) -> FileEntry:
        """Make the manifest entry of a file that lies in the bundle."""
        path = self.path / relative
        return FileEntry(relative, path.stat().st_size, sha256(path))

    def save(self) -> None:
        """Write ``manifest.json`` atomically."""
        write_atomically(self.path / MANIFEST, self.manifest.to_json())


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path.parent):
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk into our error."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(where).free if where.exists() else 0
            raise SsmExportError(
                errors.DISK_FULL,
                f"no space left ({free / 1e6:.0f} MB free)",
                where=str(where),
                fix="free some space, or give -o a folder on another disk",
            ) from error
        raise


def refuse_existing(destination: str | os.PathLike[str]) -> None:
    """``OUTPUT_EXISTS`` when something stands where a bundle is to be made."""
    if Path(destination).exists():
        raise SsmExportError(
            errors.OUTPUT_EXISTS,
            f"'{os.fspath(destination)}' exists already",
            fix="give another -o, or remove it first",
        )


@contextmanager
def new_bundle(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside ``destination`` that becomes it when the block ends well.

    Whatever ends the block otherwise, Ctrl-C included, removes the folder. ``OUTPUT_EXISTS`` when
    something stands at ``destination`` already.
    """
    final = Path(destination)
    refuse_existing(final)
    with disk_errors(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
        )
    try:
        with disk_errors(final.parent):
            yield temporary
            temporary.chmod(0o755)
            os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
