"""The devices that engines are built for: one YAML file each in ``configs/targets``."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.resources import config_dir

ENGINE_KINDS: Final = ("tensorrt-rtx", "tensorrt")
ANY: Final = "any"
"""Compute capability of a target that stands for every GPU the engine kind can build for."""


@dataclass(frozen=True)
class Target:
    """A device, or a class of devices of one compute capability.

    Attributes:
        name: its file's name, such as ``jetson-agx-orin``.
        description: one line for people.
        compute_capability: ``"8.7"``, or ``"any"``.
        engines: the engine kinds that build for it; the first is the default.
        precisions: the precisions its GPU has matrix units for.
        platform: operating system and machine, ``linux-aarch64``; empty where either would do.
        tensorrt: the TensorRT version its software ships, empty where the user installs one.
        memory_gb: memory of the GPU (shared with the CPU on a Jetson), in GB; None for a class.
        bandwidth_gb_s: peak memory bandwidth in GB/s; None for a class of cards.
        shared_memory_per_block_kb: shared memory that one block may have, in KiB; None for ``any``.
        multiprocessors: how many the GPU has, for a class of cards those of a small one; kernels
            decide by it how finely they split their work. None for ``any``.
        source: where the figures are from, and how far to trust them.
    """

    name: str
    description: str
    compute_capability: str
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    platform: str = ""
    tensorrt: str = ""
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    shared_memory_per_block_kb: int | None = None
    multiprocessors: int | None = None
    source: str = ""

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability as numbers, None for ``any``."""
        if self.compute_capability == ANY:
            return None
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor)

    def one_chip(self) -> tuple[int, int]:
        """The compute capability that kernels are compiled for.

        Raises:
            SsmExportError: ``BAD_OPTION`` for a target that stands for many GPUs.
        """
        if self.capability is None:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"the target {self.name} stands for many GPUs, kernels are compiled for one",
                where="--target",
                fix="ssm-export list targets; take the one of your board or card",
            )
        return self.capability

    def as_json(self) -> dict[str, Any]:
        """The target as an item of ``list targets``."""
        return dataclasses.asdict(self)


def target_names() -> list[str]:
    """The names of every target, sorted."""
    return sorted(path.stem for path in config_dir("targets").glob("*.yaml"))


def all_targets() -> list[Target]:
    """Every target, sorted by name."""
    return [get_target(name) for name in target_names()]


def get_target(name: str) -> Target:
    """The target of a name.

    Raises:
        SsmExportError: ``UNKNOWN_TARGET``, with the nearest name that there is.
    """
    names = target_names()
    if name not in names:
        # Words in another order are the same name to a person: agx-orin, orin-agx.
        by_words = {_words_in_order(known): known for known in names}
        near = difflib.get_close_matches(_words_in_order(name), by_words, n=1, cutoff=0.4)
        hint = f"did you mean '{by_words[near[0]]}'? " if near else ""
        raise SsmExportError(
            errors.UNKNOWN_TARGET,
            f"there is no target '{name}'",
            fix=f"{hint}ssm-export list targets shows them all: {', '.join(names)}",
        )
    return read_target(config_dir("targets") / f"{name}.yaml")


def _words_in_order(name: str) -> str:
    return "-".join(sorted(name.lower().replace("_", "-").split("-")))


def read_target(path: Path) -> Target:
    """Read one target file.

    Raises:
        SsmExportError: ``BAD_CONFIG_FILE`` with the key that cannot be used.
    """
    import yaml

    def bad(what: str) -> SsmExportError:
        known = ", ".join(field.name for field in dataclasses.fields(Target)[1:])
        return SsmExportError(
            errors.BAD_CONFIG_FILE, what, where=str(path), fix=f"the keys of a target are: {known}"
        )

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise bad(f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise bad("holds no keys")
    for key in ("engines", "precisions"):
        if not isinstance(document.get(key), list):
            raise bad(f"'{key}' is not a list")
        document[key] = tuple(str(item) for item in document[key])
    unknown_kinds = sorted(set(document["engines"]) - set(ENGINE_KINDS))
    if unknown_kinds or not document["engines"]:
        raise bad(f"'engines' is {list(document['engines'])}, known are {list(ENGINE_KINDS)}")
    for key in ("compute_capability", "tensorrt"):
        if key in document and not isinstance(document[key], str):
            raise bad(f"'{key}' is not text (put the version in quotes)")
    for key in ("shared_memory_per_block_kb", "multiprocessors"):
        value = document.get(key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise bad(f"'{key}' is {value!r}, not a whole number above 0")
    try:
        target = Target(name=path.stem, **document)
        capability = target.capability
    except (TypeError, ValueError) as error:
        raise bad(str(error)) from error
    if capability is not None and not (5 <= capability[0] < 20):
        raise bad(f"'compute_capability' is {target.compute_capability}")
    return target
