"""What a person names as a checkpoint: a folder here, or a model of the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ssm_export import errors
from ssm_export.checkpoints.checkpoint import Checkpoint
from ssm_export.checkpoints.folder import SIDE_FILES, open_folder
from ssm_export.errors import SsmExportError, missing_package

_HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?"
)
_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_TORCH_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class HubId:
    """A repository of the hub, and the branch, tag or commit of it."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """Read ``org/name`` or ``org/name@revision``; None when the text is neither."""
        match = _HUB_ID.fullmatch(text)
        return cls(match["repository"], match["revision"]) if match else None


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a checkpoint folder, or fetch one from the hub and open it.

    Args:
        source: a folder; or, where no such path exists, ``org/name`` or ``org/name@revision``.

    Raises:
        SsmExportError: ``NO_SUCH_PATH``, ``BAD_OPTION`` for a file, ``HUB_FAILED``,
            ``MISSING_PACKAGE``, and what :func:`open_folder` raises.
    """
    path = Path(source)
    if path.is_dir():
        return open_folder(path)
    if path.exists():
        raise SsmExportError(
            errors.BAD_OPTION,
            f"'{path}' is a file, a checkpoint is a folder",
            fix=f"give its folder, '{path.parent}'",
        )
    hub_id = HubId.parse(str(source)) if isinstance(source, str) else None
    if hub_id is None:
        raise SsmExportError(
            errors.NO_SUCH_PATH,
            f"there is no folder '{path}'",
            fix="give a checkpoint folder, or a hub id such as state-spaces/mamba-130m",
        )
    return open_folder(fetch_snapshot(hub_id))


def fetch_snapshot(hub_id: HubId) -> Path:
    """The folder that holds a hub model's config, tokenizer and weights, downloaded where needed.

    safetensors are preferred; ``.bin`` files are fetched only where there are none. What is in the
    hub's cache already is used, also without a network.
    """
    folder = _download(hub_id, (*SIDE_FILES, *_SAFETENSORS))
    if not any(folder.glob("*.safetensors")):
        folder = _download(hub_id, (*SIDE_FILES, *_TORCH_FILES))
    return folder


def _download(hub_id: HubId, patterns: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        purpose = f"'{hub_id.repository}' is no folder here, and fetching it from the hub"
        raise missing_package("huggingface_hub", "hub", purpose) from error
    try:
        return Path(
            snapshot_download(
                hub_id.repository, revision=hub_id.revision, allow_patterns=list(patterns)
            )
        )
    except Exception as error:  # the hub's own errors, and those of whichever HTTP client it uses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise SsmExportError(
            errors.HUB_FAILED,
            f"'{hub_id.repository}' is no folder here, and the hub did not give it ({reason})",
            fix="check the spelling and the network, or give a folder that was downloaded before",
        ) from error
