"""Lines of ``tegrastats``, of JetPack 5 and 6 (Orin) and 7 (Thor).

The fields drift from release to release: clocks are there only for root on some, rails carry two
or three numbers (now/average/peak), temperatures one or two (now/peak), and Thor's GPU lists one
clock per cluster without a load. So each field is looked for by itself, and what a line lacks is
left out. Of several numbers the first is the present one.

Source: Tegrastats Utility, NVIDIA Jetson Linux Developer Guide, and the recorded lines in
``tests/telemetry``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ssm_export.telemetry.reading import Reading

_RAIL: Final = re.compile(r"(?<!\S)(V(?:DD|IN)[A-Z0-9_]*) (-?\d+)mW")
_TEMPERATURE: Final = re.compile(r"(?<!\S)([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C")
_RAM: Final = re.compile(r"(?<!\S)RAM (\d+)/\d+MB")
_GPU: Final = re.compile(r"(?<!\S)GR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?")
_MEMORY: Final = re.compile(r"(?<!\S)EMC_FREQ (?:\d+%)?(?:@(\d+))?")
_CPUS: Final = re.compile(r"(?<!\S)CPU \[([^\]]*)\]")
_CPU: Final = re.compile(r"\d+%@(\d+)")

_OFF_C: Final = -200.0
"""A sensor in a part that is powered off reads -256 °C."""

MODULE_RAILS: Final = (
    ("VDD_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)
"""Rails that together feed the module: of Orin Nano and Orin NX, of AGX Orin, of AGX Thor.

``VDDQ_VDD2_1V8AO`` of AGX Orin hangs on ``VIN_SYS_5V0`` and would count twice. ``VIN`` of AGX Thor
is the input of the developer kit with its carrier board and is recorded, but not the module's.
"""


def parse(line: str) -> Reading | None:
    """One line as a reading; None for a line that holds neither memory nor a rail."""
    ram = _RAM.search(line)
    rails = {name: int(milliwatts) / 1e3 for name, milliwatts in _RAIL.findall(line)}
    if ram is None and not rails:
        return None
    temperatures = {name.lower(): float(value) for name, value in _TEMPERATURE.findall(line)}
    clocks: dict[str, float] = {}
    gpu = _GPU.search(line)
    if gpu is not None and gpu[2]:
        clocks["gpu"] = max((float(clock) for clock in gpu[2].split(",") if clock), default=0.0)
    memory = _MEMORY.search(line)
    if memory is not None and memory[1]:
        clocks["memory"] = float(memory[1])
    cpus = _CPUS.search(line)
    if cpus is not None:
        clocks["cpu"] = max((float(clock) for clock in _CPU.findall(cpus[1])), default=0.0)
    return Reading(
        rails_w=rails,
        temperatures_c={name: value for name, value in temperatures.items() if value > _OFF_C},
        clocks_mhz={name: clock for name, clock in clocks.items() if clock > 0},
        gpu_load=int(gpu[1]) / 100 if gpu is not None and gpu[1] else None,
        ram_mb=float(ram[1]) if ram is not None else None,
    )


def module_rails(rails_w: Mapping[str, float]) -> tuple[str, ...]:
    """The rails whose sum is the power of the module; empty where they are not known."""
    for names in MODULE_RAILS:
        if all(name in rails_w for name in names):
            return names
    return ()
