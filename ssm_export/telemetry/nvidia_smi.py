"""Lines of ``nvidia-smi --query-gpu=… --format=csv,noheader,nounits``.

Source of the reasons' bits: ``nvmlClocksEventReasons`` of NVIDIA's NVML reference. Drivers before
535 know the field as ``clocks_throttle_reasons.active`` only. Of the power: ``nvidia-smi`` manual,
Power Readings.
"""

from __future__ import annotations

import re
from typing import Final

from ssm_export.telemetry.reading import Reading

REASON_FIELDS: Final = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""The field's name in newer and in older drivers."""
POWER_FIELDS: Final = ("power.draw.instant", "power.draw")
"""The power, the better field first. Older drivers and cards know the second only, which is the
mean of the second before on Ampere (except GA100) and newer."""
AVERAGE_S: Final = 1.0
"""What ``power.draw`` is averaged over. Where it is not averaged, to think so costs a second."""
FIELDS: Final = (
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "utilization.gpu",
    "memory.used",
)
"""What is asked for between the power, which comes first, and the reasons."""
LIMITS: Final = ("name", "clocks.max.sm", "clocks.max.mem", "enforced.power.limit")
"""What is asked once."""

RAIL: Final = "board"
IDLE: Final = 0x1
"""The GPU has nothing to do: no reason to complain of."""
REASONS: Final = {
    0x2: "application clocks setting",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock setting",
}

_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_MASK: Final = re.compile(r"0x[0-9a-fA-F]+")


def parse(line: str) -> Reading | None:
    """One line of power, fields and reasons; None for a line of another shape.

    ``[N/A]``, ``[Not Supported]`` and the like leave their value out.
    """
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(FIELDS) + 2:
        return None
    power, sm, memory, temperature, load, used = (number(cell) for cell in cells[:-1])
    mask = _MASK.fullmatch(cells[-1])
    if mask is None and all(value is None for value in (power, sm, memory, temperature)):
        return None
    return Reading(
        rails_w={} if power is None else {RAIL: power},
        temperatures_c={} if temperature is None else {"gpu": temperature},
        clocks_mhz={
            name: clock for name, clock in (("gpu", sm), ("memory", memory)) if clock is not None
        },
        gpu_load=None if load is None else load / 100,
        ram_mb=used,
        reasons=reasons(int(mask[0], 16)) if mask is not None else (),
    )


def number(cell: str) -> float | None:
    """A number, with or without its unit; None for what is no number."""
    found = _NUMBER.match(cell)
    return float(found[0]) if found is not None else None


def reasons(mask: int) -> tuple[str, ...]:
    """The reasons of a bit mask, in words; being idle is none. Unknown bits are named by number."""
    known = [text for bit, text in REASONS.items() if mask & bit]
    rest = mask & ~IDLE & ~sum(REASONS)
    return (*known, f"unknown reason {rest:#x}") if rest else tuple(known)
