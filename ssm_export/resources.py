"""Where the YAML files that come with the package are: the repository's, or the installed ones."""

from __future__ import annotations

from pathlib import Path

from ssm_export import errors
from ssm_export.errors import SsmExportError

_PACKAGE = Path(__file__).resolve().parent
_CANDIDATES = (
    _PACKAGE.parent / "configs",
    _PACKAGE / "configs",
    _PACKAGE.parent / "ssm_export_configs",
)
"""A checkout has ``configs/`` beside the package; a wheel has it inside or as its own package."""


def config_dir(kind: str = "") -> Path:
    """The folder of configuration files, or the one of a kind in it.

    Args:
        kind: ``targets``, ``models``, ``quantize``, or empty for the folder that holds them.

    Raises:
        SsmExportError: ``BAD_CONFIG_FILE`` where the installation has no such folder.
    """
    for candidate in _CANDIDATES:
        # `targets` marks the folder as ours: another project may have a `configs` beside us.
        if (candidate / "targets").is_dir() and (candidate / kind).is_dir():
            return candidate / kind
    raise SsmExportError(
        errors.BAD_CONFIG_FILE,
        f"this installation has no folder 'configs/{kind}'",
        where=str(_PACKAGE),
        why="the package was not installed whole",
        fix="pip install --force-reinstall ssm-export",
    )
