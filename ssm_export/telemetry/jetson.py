"""What a Jetson says of its power mode, clocks and throttling, beside ``tegrastats``.

Source: Platform Power and Performance, NVIDIA Jetson Linux Developer Guide (R36 and R38).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from ssm_export.telemetry.streams import ask

SYSTEM: Final = Path("/sys")
_GPU_FOLDERS: Final = ("*gpu*", "*ga10b*", "*gv11b*")
"""Names of the GPU under ``class/devfreq``: ``17000000.gpu`` of JetPack 6, ``17000000.ga10b`` of
5, ``gpu-gpc-0`` of 7."""
_MODE: Final = re.compile(r"NV Power Mode:\s*(\S+)")
_SHOWN: Final = re.compile(
    r"^(GPU|EMC|cpu\d+):?\s.*?MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)(.*)$", re.MULTILINE
)
_OVERRIDDEN: Final = re.compile(r"FreqOverride=(\d+)")


def power_mode() -> str:
    """The mode of ``nvpmodel -q``; empty where it does not say."""
    found = _MODE.search(ask("nvpmodel", "-q")) if shutil.which("nvpmodel") else None
    return found[1] if found is not None else ""


def clocks_state(system: Path = SYSTEM) -> str:
    """``locked`` when ``jetson_clocks`` holds the clocks at their highest, ``not locked``, or why
    it is not known.

    ``jetson_clocks --show`` needs root; without it the range of the GPU's clock says the same.
    """
    state = shown_state(ask("jetson_clocks", "--show"))
    if state:
        return state
    ranges = _gpu_ranges(system)
    if not ranges:
        return "not known: jetson_clocks --show needs root"
    return "locked" if all(low == high for low, high in ranges) else "not locked"


def shown_state(shown: str) -> str:
    """The state that ``jetson_clocks --show`` printed; empty for anything else."""
    locked = []
    for name, low, high, current, rest in _SHOWN.findall(shown):
        # The memory's lowest clock stays as it is: an override holds it at the highest.
        override = _OVERRIDDEN.search(rest)
        if name == "EMC":
            held = override is not None and override[1] == "1"
            locked.append(held or low == high or (override is None and current == high))
        else:
            locked.append(low == high)
    if not locked:
        return ""
    return "locked" if all(locked) else "not locked"


def clock_limits_mhz(system: Path = SYSTEM) -> dict[str, float]:
    """The highest clocks that the present power mode allows, by unit."""
    limits = {}
    ranges = _gpu_ranges(system)
    if ranges:
        limits["gpu"] = max(high for _, high in ranges) / 1e6
    folders = (system / "devices/system/cpu/cpufreq").glob("policy*")
    kilohertz = [_number(folder / "scaling_max_freq") for folder in folders]
    known = [value for value in kilohertz if value is not None]
    if known:
        limits["cpu"] = max(known) / 1e3
    return limits


def throttle_state(system: Path = SYSTEM) -> dict[str, int]:
    """Over-current events counted so far, and thermal alerts that are on, by name."""
    state = {}
    for file in sorted((system / "class/hwmon").glob("hwmon*/oc*_event_cnt")):
        count = _number(file)
        if count is not None:
            state[f"over-current {file.name.removesuffix('_event_cnt')}"] = count
    for name, file in alert_files(system):
        on = _number(file)
        if on is not None:
            state[name] = max(on, state.get(name, 0))
    return state


def alert_files(system: Path = SYSTEM) -> tuple[tuple[str, Path], ...]:
    """The thermal alerts of the board: the name of each, and the file that says whether it is on.

    An alert leaves no count behind when it ends, unlike over-current, so it must be read while it
    may be on; a few files, found once, are cheap to read beside every sample.
    """
    folders = sorted((system / "class/thermal").glob("cooling_device*"))
    kinds = [(_text(folder / "type"), folder / "cur_state") for folder in folders]
    return tuple((f"thermal {kind}", file) for kind, file in kinds if kind.endswith("-alert"))


def alerts_on(files: Iterable[tuple[str, Path]]) -> tuple[str, ...]:
    """The names of the alerts that are on now, each once."""
    return tuple(dict.fromkeys(name for name, file in files if _number(file)))


def throttled_between(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[str, ...]:
    """What throttled between two states, in words."""
    said = []
    for name, value in after.items():
        if name.startswith("over-current"):
            events = value - before.get(name, value)
            if events > 0:
                said.append(f"{name}: {events} events")
        elif value or before.get(name):
            said.append(name)
    return tuple(said)


def _gpu_ranges(system: Path) -> list[tuple[int, int]]:
    """Lowest and highest clock of the GPU's clusters, in Hz."""
    ranges = []
    for pattern in _GPU_FOLDERS:
        for folder in sorted((system / "class/devfreq").glob(pattern)):
            low, high = _number(folder / "min_freq"), _number(folder / "max_freq")
            if low is not None and high is not None:
                ranges.append((low, high))
    return ranges


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None
