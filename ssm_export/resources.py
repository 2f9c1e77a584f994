"""What comes with the package: its YAML files and the GPU code, the repository's or installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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


def load_plugins() -> ModuleType:
    """The package ``ssm_export_plugins``: installed, or the folder ``plugins`` of a checkout.

    Afterwards ``import ssm_export_plugins.aot`` and the like work.

    Raises:
        SsmExportError: ``MISSING_PACKAGE`` where the installation has no GPU code.
    """
    name = "ssm_export_plugins"
    if name in sys.modules:
        return sys.modules[name]
    entry = _PACKAGE.parent / "plugins" / "__init__.py"
    if not (entry.parent / "kernels").is_dir():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise SsmExportError(
                errors.MISSING_PACKAGE,
                "this installation has no GPU kernels",
                where=str(_PACKAGE),
                fix="pip install --force-reinstall ssm-export",
            ) from error
    spec = importlib.util.spec_from_file_location(
        name, entry, submodule_search_locations=[str(entry.parent)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
