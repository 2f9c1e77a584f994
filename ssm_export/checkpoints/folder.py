"""A checkpoint folder: which files it has, which layout that is, and its tensors by our names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssm_export import errors
from ssm_export.checkpoints import mamba_ssm
from ssm_export.checkpoints.checkpoint import Checkpoint, LazyTensor
from ssm_export.checkpoints.names import with_transformers_names
from ssm_export.checkpoints.safetensors_files import corrupt, open_safetensors
from ssm_export.checkpoints.torch_files import open_torch_file
from ssm_export.errors import SsmExportError

CONFIG = "config.json"
WEIGHTS_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The files that are looked for, the first one found is used."""
SIDE_FILES = (
    CONFIG,
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)

Tensors = dict[str, LazyTensor]
Closer = Callable[[], None]


def open_folder(folder: Path) -> Checkpoint:
    """Open the checkpoint in ``folder``: reads its config and the headers of its weights files.

    Raises:
        SsmExportError: ``NO_CONFIG``, ``BAD_MODEL_CONFIG``, ``NO_WEIGHTS``, ``MISSING_SHARD``,
            ``CORRUPT_WEIGHTS``, ``UNSAFE_PICKLE`` or ``MISSING_PACKAGE``.
    """
    config = read_config(folder)
    where = str(folder / CONFIG)
    translated = mamba_ssm.is_config(config)
    if translated:
        config = mamba_ssm.transformers_config(config, where)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise SsmExportError(
            errors.BAD_MODEL_CONFIG,
            "it has no 'model_type', and no 'd_model' and 'n_layer' as mamba_ssm's configs have",
            where=where,
            fix='add "model_type": "mamba" or "mamba2", whichever the weights are',
        )
    files, tensors, closers = _open_weights(folder)
    return Checkpoint(
        path=folder,
        layout="mamba_ssm" if translated else "transformers",
        model_type=model_type,
        config=config,
        tensors=with_transformers_names(tensors),
        side_files=_side_files(folder),
        weights_files=files,
        closers=closers,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` as it is, with infinite floats in either of their spellings as floats."""
    path = folder / CONFIG
    if not path.is_file():
        raise SsmExportError(
            errors.NO_CONFIG,
            f"the folder has no {CONFIG}",
            where=str(folder),
            fix="give the folder that holds config.json and the weights",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_hook=_decode_float)
    except (ValueError, RecursionError, OSError) as error:
        raise SsmExportError(
            errors.BAD_MODEL_CONFIG,
            f"not readable as JSON ({error})",
            where=str(path),
            fix="copy or download config.json again",
        ) from error
    if not isinstance(config, dict):
        raise SsmExportError(
            errors.BAD_MODEL_CONFIG,
            f"holds a {type(config).__name__}, not an object of keys and values",
            where=str(path),
            fix="copy or download config.json again",
        )
    return config


def _decode_float(value: dict[str, Any]) -> Any:
    """transformers 5 writes infinity as ``{"__float__": "Infinity"}``."""
    if set(value) == {"__float__"}:
        return float(value["__float__"])
    return value


def _open_weights(folder: Path) -> tuple[tuple[Path, ...], Tensors, tuple[Closer, ...]]:
    found = next((name for name in WEIGHTS_NAMES if (folder / name).is_file()), None)
    if found is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise SsmExportError(
            errors.NO_WEIGHTS,
            f"none of {', '.join(WEIGHTS_NAMES)} is there, only {there}",
            where=str(folder),
            fix="give a folder that transformers or mamba_ssm saved a whole model into",
        )
    index = _read_index(folder / found) if found.endswith(".index.json") else None
    names = sorted(set(index.values())) if index is not None else [found]
    files = tuple(folder / name for name in names)
    for path in files:
        if not path.is_file():
            raise SsmExportError(
                errors.MISSING_SHARD,
                f"'{path.name}' is not there, and {found} names it",
                where=str(folder),
                fix=f"download '{path.name}' again, one of {len(files)} weights files",
            )
    tensors: Tensors = {}
    closers: list[Closer] = []
    for path in files:
        if path.suffix == ".safetensors":
            tensors.update(open_safetensors(path))
        else:
            of_file, closer = open_torch_file(path)
            tensors.update(of_file)
            closers.append(closer)
    for name, file in (index or {}).items():
        if name not in tensors:
            raise corrupt(folder / file, f"the file lacks '{name}', which {found} says it holds")
    return files, tensors, tuple(closers)


def _read_index(path: Path) -> dict[str, str]:
    """The map from tensor names to files of an ``.index.json``."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        entries = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise corrupt(path, f"not an index of weights files ({error!r})") from error
    for file in entries.values():
        if Path(file).name != file or not file.endswith((".safetensors", ".bin")):
            raise corrupt(path, f"'{file}' is not the name of a weights file in this folder")
    if not entries:
        raise corrupt(path, "the index names no weights file")
    return entries


def _side_files(folder: Path) -> tuple[Path, ...]:
    """Config and tokenizer files, sorted by name."""
    matches = {path for pattern in SIDE_FILES for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(matches))
