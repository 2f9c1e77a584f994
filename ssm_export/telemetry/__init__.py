"""Power, clocks and temperatures of the device, sampled beside a measurement."""

from __future__ import annotations

from ssm_export.telemetry.reading import FEWEST_SAMPLES
from ssm_export.telemetry.recorder import Recorder, record

__all__ = ["FEWEST_SAMPLES", "Recorder", "record"]
