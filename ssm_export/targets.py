"""The devices that engines are built for: one YAML file each in ``configs/targets``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ssm_export import errors, machine
from ssm_export.errors import SsmExportError
from ssm_export.resources import config_dir
from ssm_export.target_file import (
    ANY,
    ENGINE_KINDS,
    JetPack,
    PowerMode,
    Target,
    read_target,
)

__all__ = [
    "ANY",
    "ENGINE_KINDS",
    "OWN_TARGETS",
    "JetPack",
    "PowerMode",
    "Target",
    "all_targets",
    "get_target",
    "guess",
    "read_target",
    "target_names",
    "this_machine",
]

OWN_TARGETS: Final = "SSM_EXPORT_TARGETS"
"""Environment variable with a folder of target files of one's own; they go before ours."""
_MODULE: Final = Path("/proc/device-tree/compatible")
"""Where a Jetson names its module: ``nvidia,p3737-0000+p3701-0005 nvidia,tegra234``, with NULs."""


def target_names() -> list[str]:
    """The names of every target, sorted."""
    return sorted(_files())


def all_targets() -> list[Target]:
    """Every target, sorted by name."""
    return [read_target(file) for _, file in sorted(_files().items())]


def get_target(name: str) -> Target:
    """The target of a name.

    Raises:
        SsmExportError: ``UNKNOWN_TARGET``, with the nearest name that there is.
    """
    files = _files()
    if name not in files:
        names = sorted(files)
        # Words in another order are the same name to a person: agx-orin, orin-agx.
        by_words = {_words_in_order(known): known for known in names}
        near = difflib.get_close_matches(_words_in_order(name), by_words, n=1, cutoff=0.4)
        hint = f"did you mean '{by_words[near[0]]}'? " if near else ""
        own = f"; a board of your own: a file in the folder that {OWN_TARGETS} names"
        raise SsmExportError(
            errors.UNKNOWN_TARGET,
            f"there is no target '{name}'",
            fix=f"{hint}ssm-export list targets shows them all: {', '.join(names)}{own}",
        )
    return read_target(files[name])


def this_machine() -> Target | None:
    """The target of the machine this runs on, by what it calls itself; None where none fits.

    A GPU whose own name is in no file is taken for the class of cards of its compute capability,
    of which no bandwidth is known.
    """
    try:
        gpus = machine.find_gpus()
        capability = gpus[0].compute_capability if gpus else None
        names = [*_board_names(), *(gpu.name for gpu in gpus[:1])]
        memory = gpus[0].memory_bytes if gpus else machine.memory_bytes()
    except (OSError, ValueError):
        return None
    return guess(names, memory, capability)


def guess(
    names: Sequence[str], memory_bytes: int, capability: tuple[int, int] | None = None
) -> Target | None:
    """The target of a machine.

    Args:
        names: what it calls itself, the surest first: its module, its board, its GPU.
        memory_bytes: of its GPU, which tells boards of one name apart.
        capability: of its GPU; None where it is not known.
    """
    targets = [t for t in all_targets() if capability in (None, t.capability)]
    for name in names:
        found = [t for t in targets if name.casefold() in (k.casefold() for k in t.known_as)]
        # A system sees a little less memory than the board has.
        found.sort(key=lambda target: target.memory_gb or 0)
        for target in found:
            if memory_bytes <= (target.memory_gb or 0) * 2**30 or target is found[-1]:
                return target
    classes = [t for t in targets if capability and t.memory_gb is None]
    return classes[0] if len(classes) == 1 else None


def _board_names() -> list[str]:
    """What a Jetson calls its module and itself; empty on anything else."""
    names: list[str] = []
    for file, separators in ((_MODULE, r"[\0,+]"), (machine.JETSON_MODEL, r"\0")):
        if file.is_file():
            text = file.read_bytes().decode(errors="replace")
            names += [part.strip() for part in re.split(separators, text) if part.strip()]
    return names


def _files() -> dict[str, Path]:
    """Name to file, one's own before ours."""
    folders = [config_dir("targets")]
    own = os.environ.get(OWN_TARGETS)
    if own:
        if not Path(own).is_dir():
            raise SsmExportError(
                errors.NO_SUCH_PATH,
                f"there is no folder '{own}'",
                where=OWN_TARGETS,
                fix=f"unset {OWN_TARGETS}, or set it to a folder of target files",
            )
        folders.append(Path(own))
    return {path.stem: path for folder in folders for path in folder.glob("*.yaml")}


def _words_in_order(name: str) -> str:
    return "-".join(sorted(name.lower().replace("_", "-").split("-")))
