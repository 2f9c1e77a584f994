"""Power, clocks and temperatures of the device, sampled beside a measurement."""

from __future__ import annotations

from ssm_export.telemetry.recorder import Recorder, record

__all__ = ["Recorder", "record"]
