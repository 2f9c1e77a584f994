"""Telemetry of one measurement: started before it, stopped after it, summed up at the end."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from ssm_export.telemetry.reading import FEWEST_SAMPLES, Reading, energy_j
from ssm_export.telemetry.sources import INTERVAL_MS, Facts, Source, find_source

_FIRST_SAMPLES_S: Final = 2.0
"""How long the first samples are waited for; they also show the power of the idle device."""
_BELOW: Final = 0.95
"""A median clock under this share of the highest is named."""


class Recorder:
    """Samples of a device while something is measured.

    Args:
        source: where the samples come from, or the reason why there is nothing to sample.
    """

    def __init__(self, source: Source | str) -> None:
        self._source = None if isinstance(source, str) else source
        self._notes = [source] if isinstance(source, str) else []
        self._busy_from = math.inf
        self._readings: list[tuple[float, Reading]] = []
        self._facts = Facts()

    def start(self) -> None:
        """Begin to sample, and wait for the first samples of the idle device."""
        if self._source is None:
            return
        self._source.start()
        end = time.perf_counter() + _FIRST_SAMPLES_S
        while (
            self._source.alive()
            and self._source.count() < FEWEST_SAMPLES
            and time.perf_counter() < end
        ):
            time.sleep(INTERVAL_MS / 2e3)

    def busy(self) -> None:
        """Say that the measurement begins: the samples so far were of the idle device."""
        self._busy_from = min(self._busy_from, time.perf_counter())

    def stop(self) -> None:
        """End the sampling; afterwards the summary and the energies can be asked for."""
        if self._source is None or self._readings:
            return
        self._source.stop()
        self._readings = self._source.readings()
        self._facts = self._source.facts()
        if self._source.trouble:
            self._notes.append(self._source.trouble)

    def has_power(self) -> bool:
        """Whether the power is sampled at present."""
        source = self._source
        if source is None or not source.alive():
            return False
        return any(self._power(reading) is not None for _, reading in source.readings())

    @property
    def settle_s(self) -> float:
        """Seconds after which a sample is of what runs now alone: what its power is averaged over,
        and two intervals, since a sample arrives some time after it was taken."""
        return 0.0 if self._source is None else self._source.average_s + 2 * INTERVAL_MS / 1e3

    def power_samples(self, begin: float, end: float) -> int:
        """Samples of the power in an interval of ``time.perf_counter``; asked after the stop."""
        return sum(begin <= at <= end for at, _ in self._curve())

    def energy_j(self, begin: float, end: float) -> float | None:
        """Joules that the device took in an interval of ``time.perf_counter``; after the stop.

        The power of the whole device, idle power included. None where it is not sampled, or too
        seldom for this interval.
        """
        curve = self._curve()
        return energy_j([at for at, _ in curve], [power for _, power in curve], begin, end)

    def summary(self) -> dict[str, Any]:
        """The ``telemetry`` member of a report."""
        busy = [reading for at, reading in self._readings if at >= self._busy_from]
        idle = [self._power(reading) for at, reading in self._readings if at < self._busy_from]
        idle_w = [power for power in idle if power is not None]
        powers = [power for reading in busy if (power := self._power(reading)) is not None]
        clocks = _clocks(busy, self._facts.limits_mhz)
        rails = self._rails()
        return {
            "source": self._source.name if self._source is not None and self._readings else None,
            "device": self._facts.device,
            "samples": len(busy),
            "interval_ms": INTERVAL_MS,
            "power_mode": self._facts.power_mode,
            "jetson_clocks": self._facts.jetson_clocks,
            "power_rail": " + ".join(rails),
            "power_reading": self._source.power_reading if self._source and rails else "",
            "average_s": self._source.average_s if self._source and rails else None,
            "mean_w": statistics.fmean(powers) if powers else None,
            "idle_w": statistics.median(idle_w) if idle_w else None,
            "rails": _spread([reading.rails_w for reading in busy], "w"),
            "clocks": clocks,
            "temperatures": _spread([reading.temperatures_c for reading in busy], "c"),
            "ram_mb": max((r.ram_mb for r in busy if r.ram_mb is not None), default=None),
            "throttled": [*_reasons(busy), *self._facts.throttled],
            "below_maximum": _below(clocks),
            "notes": [*self._notes, *self._no_power()],
        }

    def _no_power(self) -> tuple[str, ...]:
        """Why there is no power although there is a source; nothing where the notes say it."""
        if self._source is None or self._rails() or self._source.trouble:
            return ()
        named = sorted({name for _, reading in self._readings for name in reading.rails_w})
        if named:
            rails = ", ".join(named)
            return (f"the rails that {self._source.name} names are no known module's: {rails}",)
        if self._readings:
            return (f"{self._source.name} gives no power of this device",)
        return (f"{self._source.name} gave no samples",)

    def _curve(self) -> list[tuple[float, float]]:
        return [(at, power) for at, reading in self._readings
                if (power := self._power(reading)) is not None]  # fmt: skip

    def _rails(self) -> tuple[str, ...]:
        if self._source is None:
            return ()
        found = (self._source.power_rails(dict(reading.rails_w)) for _, reading in self._readings)
        return next((rails for rails in found if rails), ())

    def _power(self, reading: Reading) -> float | None:
        if self._source is None:
            return None
        rails = self._source.power_rails(dict(reading.rails_w))
        return sum(reading.rails_w[name] for name in rails) if rails else None


@contextmanager
def record(device: str) -> Iterator[Recorder]:
    """Sample the device that a runner uses while the block runs.

    Args:
        device: of the runner, such as ``cpu`` or the name of a GPU.
    """
    recorder = Recorder(find_source(device))
    recorder.start()
    try:
        yield recorder
    finally:
        recorder.stop()


def _spread(samples: Sequence[Any], unit: str) -> dict[str, dict[str, float]]:
    names = sorted({name for sample in samples for name in sample})
    found = {}
    for name in names:
        values = [sample[name] for sample in samples if name in sample]
        found[name] = {
            f"first_{unit}": values[0],
            f"mean_{unit}": statistics.fmean(values),
            f"max_{unit}": max(values),
        }
    return found


def _clocks(
    readings: Sequence[Reading], limits_mhz: dict[str, float]
) -> dict[str, dict[str, float | None]]:
    names = sorted({name for reading in readings for name in reading.clocks_mhz})
    found: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [r.clocks_mhz[name] for r in readings if name in r.clocks_mhz]
        found[name] = {
            "median_mhz": statistics.median(values),
            "lowest_mhz": min(values),
            "highest_mhz": max(values),
            "limit_mhz": limits_mhz.get(name),
        }
    return found


def _below(clocks: dict[str, dict[str, float | None]]) -> list[str]:
    said = []
    for unit, found in clocks.items():
        median, limit = found["median_mhz"], found["limit_mhz"]
        if median is not None and limit is not None and median < _BELOW * limit:
            said.append(
                f"{unit} clock {median:.0f} MHz in the median, the highest is {limit:.0f} MHz"
            )
    return said


def _reasons(readings: Sequence[Reading]) -> list[str]:
    seen = Counter(reason for reading in readings for reason in reading.reasons)
    return [
        f"{reason} in {count / len(readings):.0%} of the samples"
        for reason, count in seen.most_common()
    ]
