"""A device as its YAML file describes it; ``configs/targets/README.md`` explains every key."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.resources import config_dir

ENGINE_KINDS: Final = ("tensorrt-rtx", "tensorrt")
ANY: Final = "any"
"""Compute capability of a target that stands for every GPU the engine kind can build for."""
PRECISIONS: Final = ("fp32", "fp16", "bf16")
JETPACK_FILE: Final = "jetpack.yaml"
_RATES: Final = (*PRECISIONS, "fp8", "int8", "int4", "mxfp8", "nvfp4")


@dataclass(frozen=True)
class JetPack:
    """What a release of NVIDIA's software for Jetson boards brings, from ``configs/jetpack.yaml``.

    Attributes:
        release: such as ``6.2``.
        jetson_linux, cuda, tensorrt, python: versions; ``python`` is the system's.
        source: where they are from.
    """

    release: str
    jetson_linux: str
    cuda: str
    tensorrt: str
    python: str
    source: str


@dataclass(frozen=True)
class PowerMode:
    """A power mode of a Jetson (``nvpmodel``).

    Attributes:
        name: as ``nvpmodel -q`` says it.
        bandwidth_gb_s: peak memory bandwidth in this mode, GB/s.
        watts: its power budget; None for a mode without one.
    """

    name: str
    bandwidth_gb_s: float
    watts: float | None = None


@dataclass(frozen=True)
class Target:
    """A device, or a class of devices of one compute capability.

    Attributes:
        name: its file's name, such as ``jetson-agx-orin``.
        description: one line for people.
        compute_capability: ``"8.7"``, or ``"any"``.
        engines: the engine kinds that build for it; the first is the default.
        precisions: the precisions its GPU has matrix units for. Which 8-bit and 4-bit formats it
            computes with follows from the rest: :func:`ssm_export.device_formats.formats`.
        platform: operating system and machine, ``linux-aarch64``; empty where either would do.
        jetpack: the JetPack releases that run on it, oldest first; empty where it is no Jetson.
        tensorrt: the TensorRT version its software ships (the oldest JetPack's), empty where the
            user installs one.
        memory_gb: memory of the GPU as it is sold, in units of 2³⁰ bytes; None for a class.
        unified_memory: whether that memory is the CPU's too.
        reserve_gb: what of it the driver, and the system where the memory is its too, keep.
        bandwidth_gb_s: peak memory bandwidth in GB/s; None for a class of cards.
        power_modes: with their bandwidths; empty where there is one.
        shared_memory_per_block_kb: shared memory that one block may have, in KiB; None for ``any``.
        multiprocessors: how many the GPU has, for a class of cards those of a small one; kernels
            decide by it how finely they split their work. None for ``any``.
        peak_tflops: number format to peak dense arithmetic on matrix units, 10¹² per second.
        known_as: how a machine says that it is this one: names of the GPU, the board or the module.
        sources: key to where its figure is from, and how far to trust it.
    """

    name: str
    description: str
    compute_capability: str
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    platform: str = ""
    jetpack: tuple[JetPack, ...] = ()
    tensorrt: str = ""
    memory_gb: float | None = None
    unified_memory: bool = False
    reserve_gb: float = 1.0
    bandwidth_gb_s: float | None = None
    power_modes: tuple[PowerMode, ...] = ()
    shared_memory_per_block_kb: int | None = None
    multiprocessors: int | None = None
    peak_tflops: Mapping[str, float] = field(default_factory=dict)
    known_as: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability as numbers, None for ``any``."""
        if self.compute_capability == ANY:
            return None
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor)

    @property
    def available_bytes(self) -> float | None:
        """Memory that a model may have, in bytes: the reserve is taken off; None for a class."""
        return None if self.memory_gb is None else (self.memory_gb - self.reserve_gb) * 2**30

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


def read_target(path: Path) -> Target:
    """Read one target file.

    Raises:
        SsmExportError: ``BAD_CONFIG_FILE`` with the key that cannot be used.
    """
    document = _read_yaml(path)
    for key in document:
        if key not in _READERS:
            near = difflib.get_close_matches(str(key), _READERS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise _bad(path, f"'{key}' is no key of a target{hint}")
    for key in _REQUIRED:
        if key not in document:
            raise _bad(path, f"'{key}' is missing")
    values = {key: _read_value(path, key, value) for key, value in document.items()}
    if values.get("jetpack"):
        values.setdefault("tensorrt", values["jetpack"][0].tensorrt)
    target = Target(name=path.stem, **values)
    _check_together(path, target)
    return target


def jetpack_releases() -> dict[str, JetPack]:
    """Every JetPack release that is known, oldest first.

    Raises:
        SsmExportError: ``BAD_CONFIG_FILE`` for a file that cannot be used.
    """
    path = config_dir() / JETPACK_FILE
    try:
        return {
            release: JetPack(release, **{key: _text(value) for key, value in facts.items()})
            for release, facts in _read_yaml(path).items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise _bad(path, str(error)) from error


def _read_value(path: Path, key: str, value: object) -> Any:
    try:
        return _READERS[key](value)
    except ValueError as error:
        raise _bad(path, f"'{key}' is {value!r}: {error}") from error


def _check_together(path: Path, target: Target) -> None:
    """What one key alone does not show."""
    if target.memory_gb is not None and target.reserve_gb >= target.memory_gb:
        raise _bad(
            path, f"'reserve_gb' is {target.reserve_gb:g}, 'memory_gb' only {target.memory_gb:g}"
        )
    best = target.bandwidth_gb_s
    if target.power_modes and best is None:
        raise _bad(path, "'power_modes' are there and 'bandwidth_gb_s' is not")
    for mode in target.power_modes:
        if best is not None and mode.bandwidth_gb_s > best:
            raise _bad(
                path,
                f"'power_modes': {mode.name} has {mode.bandwidth_gb_s:g} GB/s, more than "
                f"'bandwidth_gb_s', which is {best:g}",
            )
    for key in target.sources:
        if key not in _READERS or key == "sources":
            raise _bad(path, f"'sources' has '{key}', which is no key of a target")


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _bad(path, f"not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise _bad(path, "holds no keys")
    return document


def _bad(path: Path, what: str) -> SsmExportError:
    return SsmExportError(
        errors.BAD_CONFIG_FILE,
        what,
        where=str(path),
        fix=f"the keys of a target are: {', '.join(_READERS)}; "
        "configs/targets/README.md explains them",
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text (put versions in quotes)")
    if not value.strip():
        raise ValueError("empty")
    return value


def _version(value: object) -> str:
    text = _text(value)
    if not all(part.isdecimal() for part in text.split(".")) or "." not in text:
        raise ValueError('not a version such as "10.3"')
    return text


def _capability(value: object) -> str:
    text = _text(value)
    parts = text.split(".")
    if text != ANY and not (len(parts) == 2 and all(part.isdecimal() for part in parts)):
        raise ValueError('not a compute capability such as "8.7", nor "any"')
    if text != ANY and not 5 <= int(parts[0]) < 20:
        raise ValueError("no GPU has such a compute capability")
    return text


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError("not a number above 0")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("not a whole number above 0")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("is not a list")
    return tuple(_text(item) for item in value)


def _some_of(known: tuple[str, ...]) -> Callable[[object], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        items = _texts(value)
        if not items or set(items) - set(known):
            raise ValueError(f"known are {', '.join(known)}")
        return items

    return read


def _jetpack(value: object) -> tuple[JetPack, ...]:
    known = jetpack_releases()
    asked = _texts(value)
    unknown = [release for release in asked if release not in known]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} is not in configs/{JETPACK_FILE}, which has {', '.join(known)}"
        )
    return tuple(known[release] for release in known if release in asked)


def _power_modes(value: object) -> tuple[PowerMode, ...]:
    if not isinstance(value, list):
        raise ValueError("is not a list")
    modes = []
    for item in value:
        if not isinstance(item, dict) or not {"name", "bandwidth_gb_s"} <= set(item):
            raise ValueError(f"{item!r} has not both 'name' and 'bandwidth_gb_s'")
        unknown = set(item) - {"name", "bandwidth_gb_s", "watts"}
        if unknown:
            raise ValueError(f"a mode has no '{sorted(map(str, unknown))[0]}'")
        watts = item.get("watts")
        modes.append(
            PowerMode(
                _text(item["name"]),
                _number(item["bandwidth_gb_s"]),
                None if watts is None else _number(watts),
            )
        )
    return tuple(modes)


def _rates(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or set(value) - set(_RATES):
        raise ValueError(f"not a list of rates, known are {', '.join(_RATES)}")
    return {name: _number(rate) for name, rate in value.items()}


def _sources(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("not a text for each key")
    return {str(key): " ".join(_text(text).split()) for key, text in value.items()}


_READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "description": _text,
    "compute_capability": _capability,
    "engines": _some_of(ENGINE_KINDS),
    "precisions": _some_of(PRECISIONS),
    "platform": _text,
    "jetpack": _jetpack,
    "tensorrt": _version,
    "memory_gb": _number,
    "unified_memory": _truth,
    "reserve_gb": _number,
    "bandwidth_gb_s": _number,
    "power_modes": _power_modes,
    "shared_memory_per_block_kb": _count,
    "multiprocessors": _count,
    "peak_tflops": _rates,
    "known_as": _texts,
    "sources": _sources,
}
"""Every key of a target file and what reads its value, which says by a ValueError what is wrong."""
_REQUIRED: Final = ("description", "compute_capability", "engines", "precisions")
