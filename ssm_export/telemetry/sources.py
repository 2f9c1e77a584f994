"""Where readings come from: ``tegrastats``, ``nvidia-smi``, or the energy counters of a CPU."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from ssm_export.telemetry import jetson, nvidia_smi, tegrastats
from ssm_export.telemetry.reading import Reading
from ssm_export.telemetry.streams import CounterStream, LineStream, ask

INTERVAL_MS: Final = 100
"""Time between samples: what ``nvidia-smi`` and a Jetson's power monitors can usefully give."""
POWERCAP: Final = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Facts:
    """What is true of a whole run, found out before or after it.

    Attributes:
        power_mode: of a Jetson.
        jetson_clocks: ``locked``, ``not locked``, or why it is not known; empty elsewhere.
        limits_mhz: the highest clock of each unit in this mode.
        throttled: reasons that are counted over the run and are not in the readings.
        device: name of the GPU; empty where it is not known.
    """

    power_mode: str = ""
    jetson_clocks: str = ""
    limits_mhz: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    device: str = ""


class Source(Protocol):
    """Something that gives readings from its start to its stop.

    Attributes:
        name: of the source.
        power_reading: which of its figures the power is, in the source's own words.
        average_s: seconds before a sample that its power is the mean of; 0 for that moment's.
    """

    name: str
    power_reading: str
    average_s: float

    @property
    def trouble(self) -> str:
        """Why samples are missing; empty when none are."""
        ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def count(self) -> int:
        """Samples so far, cheap to ask."""
        ...

    def alive(self) -> bool:
        """Whether more samples may come."""
        ...

    def readings(self) -> list[tuple[float, Reading]]:
        """Every sample with its time on the clock of ``time.perf_counter``, ascending."""
        ...

    def power_rails(self, rails_w: dict[str, float]) -> tuple[str, ...]:
        """The rails whose sum is the power of the device."""
        ...

    def facts(self) -> Facts:
        """What is true of the whole run; asked after the stop."""
        ...


class _Lines:
    """A source that is a program's lines, with the reasons that ``look`` finds at each of them."""

    name = ""
    power_reading = ""
    average_s = 0.0

    def __init__(
        self,
        command: list[str],
        parse: Callable[[str], Reading | None],
        look: Callable[[], tuple[str, ...]] | None = None,
    ) -> None:
        self._stream = LineStream(command, look)
        self._parse = parse

    @property
    def trouble(self) -> str:
        said = self._stream.trouble
        if not said and self._stream.lines and not self.readings():
            return f"{self.name} printed nothing that can be read"
        return said

    def start(self) -> None:
        self._stream.start()

    def stop(self) -> None:
        self._stream.stop()

    def count(self) -> int:
        return len(self._stream.lines)

    def alive(self) -> bool:
        return self._stream.alive()

    def readings(self) -> list[tuple[float, Reading]]:
        made = []
        for (at, line), beside in zip(self._stream.lines, self._stream.beside, strict=False):
            reading = self._parse(line)
            if reading is not None:
                made.append((at, replace(reading, reasons=(*reading.reasons, *beside))))
        return made


class Tegrastats(_Lines):
    """A Jetson: ``tegrastats``, and what the board says of its power mode and clocks."""

    name = "tegrastats"
    power_reading = "the present figure of each rail"

    def __init__(self, program: str, system: Path = jetson.SYSTEM) -> None:
        alerts = jetson.alert_files(system)
        super().__init__(
            [program, "--interval", str(INTERVAL_MS)],
            tegrastats.parse,
            lambda: jetson.alerts_on(alerts),
        )
        self._system = system
        self._before = jetson.throttle_state(system)

    def power_rails(self, rails_w: dict[str, float]) -> tuple[str, ...]:
        return tegrastats.module_rails(rails_w)

    def facts(self) -> Facts:
        throttled = jetson.throttled_between(self._before, jetson.throttle_state(self._system))
        sampled = {name for names in self._stream.beside for name in names}
        return Facts(
            power_mode=jetson.power_mode(),
            jetson_clocks=jetson.clocks_state(self._system),
            limits_mhz=jetson.clock_limits_mhz(self._system),
            throttled=tuple(name for name in throttled if name not in sampled),
        )


class NvidiaSmi(_Lines):
    """A GPU in a computer: ``nvidia-smi``."""

    name = "nvidia-smi"

    def __init__(self, program: str) -> None:
        gpu = ["-i", _first_gpu()]
        asked = f"--query-gpu={','.join(nvidia_smi.LIMITS)}"
        form = "--format=csv,noheader,nounits"
        self._limits = [cell.strip() for cell in ask(program, *gpu, asked, form).split(",")]

        def said(name: str) -> str:
            """What it answers. A driver that does not know the name prints an error and no line;
            where it has not answered at all, it is not asked again: it may be hanging."""
            return ask(program, *gpu, f"--query-gpu={name}", form) if any(self._limits) else ""

        reason = next(filter(said, nvidia_smi.REASON_FIELDS), nvidia_smi.REASON_FIELDS[0])
        # A card that does not have the figure answers [N/A].
        instant, averaged = nvidia_smi.POWER_FIELDS
        known = nvidia_smi.number(said(instant).strip()) is not None
        self.power_reading = instant if known else averaged
        self.average_s = 0.0 if known else nvidia_smi.AVERAGE_S
        query = f"--query-gpu={','.join((self.power_reading, *nvidia_smi.FIELDS, reason))}"
        super().__init__([program, *gpu, query, form, "-lms", str(INTERVAL_MS)], nvidia_smi.parse)

    def power_rails(self, rails_w: dict[str, float]) -> tuple[str, ...]:
        return (nvidia_smi.RAIL,) if nvidia_smi.RAIL in rails_w else ()

    def facts(self) -> Facts:
        if len(self._limits) != len(nvidia_smi.LIMITS):
            return Facts()
        name, sm, memory, _ = self._limits
        limits = {"gpu": nvidia_smi.number(sm), "memory": nvidia_smi.number(memory)}
        return Facts(
            limits_mhz={unit: clock for unit, clock in limits.items() if clock is not None},
            device=name,
        )


class Rapl:
    """The energy counters of an x86 processor's packages, which newer kernels let root alone read.

    Source: Documentation/power/powercap of the Linux kernel.
    """

    name = "rapl"
    power_reading = "what the energy counters rose by"
    average_s = 0.0
    trouble = ""

    def __init__(self, packages: list[Path]) -> None:
        self._files = [package / "energy_uj" for package in packages]
        self._ranges = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        self._stream = CounterStream(self._read, INTERVAL_MS / 1e3)

    def start(self) -> None:
        self._stream.start()

    def stop(self) -> None:
        self._stream.stop()

    def count(self) -> int:
        return len(self._stream.values)

    def alive(self) -> bool:
        return True

    def readings(self) -> list[tuple[float, Reading]]:
        made = []
        for (before, first), (after, second) in itertools.pairwise(self._stream.values):
            used = sum(
                (new - old) % full
                for old, new, full in zip(first, second, self._ranges, strict=True)
            )
            rails = {"package": used / 1e6 / (after - before)}
            made.append(((before + after) / 2, Reading(rails_w=rails)))
        return made

    def power_rails(self, rails_w: dict[str, float]) -> tuple[str, ...]:
        return ("package",)

    def facts(self) -> Facts:
        return Facts()

    def _read(self) -> tuple[int, ...]:
        return tuple(int(file.read_text()) for file in self._files)


def find_source(device: str, powercap: Path = POWERCAP) -> Source | str:
    """The source that measures what a runner uses, or why there is none.

    Args:
        device: of the runner; ``cpu``, or something of a GPU.
        powercap: where Linux has its energy counters.
    """
    program = shutil.which("tegrastats")
    if program is not None:
        return Tegrastats(program)
    if device != "cpu":
        program = shutil.which("nvidia-smi")
        return NvidiaSmi(program) if program is not None else "nvidia-smi is not installed"
    try:
        packages = [
            folder
            for folder in sorted(powercap.glob("intel-rapl:*"))
            if (folder / "name").read_text().startswith("package")
        ]
        if packages:
            return (
                Rapl(packages)
                if _readable(packages)
                else (f"{packages[0] / 'energy_uj'} may be read by root only")
            )
    except (OSError, ValueError) as error:
        return f"{powercap} cannot be read: {error}"
    return "this system has no power counters for its CPU"


def _readable(packages: list[Path]) -> bool:
    return all(os.access(package / "energy_uj", os.R_OK) for package in packages)


def _first_gpu() -> str:
    """The GPU that CUDA calls 0, as far as the environment says."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[0].strip() or "0"
