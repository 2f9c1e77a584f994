"""The GPU at hand: what plans depend on, and what a reader of figures must know."""

from __future__ import annotations

import datetime
import importlib
import platform
import subprocess
from typing import Any, Final

from ssm_export_plugins.plan import Chip

INTERPRETED: Final = Chip((9, 0), 232_448, 132)
"""Whose plans are interpreted where there is no GPU: an H100's."""

_QUERY: Final = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
)


def has_gpu() -> bool:
    """Whether torch can use an NVIDIA GPU."""
    import torch

    return bool(torch.cuda.is_available() and torch.version.cuda)


def chip() -> Chip:
    """What plans depend on of the current GPU."""
    import torch

    properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Chip(
        (properties.major, properties.minor),
        int(properties.shared_memory_per_block_optin),
        int(properties.multi_processor_count),
    )


def l2_bytes() -> int:
    """Bytes of the second-level cache; 64 MiB where torch does not say."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(getattr(properties, "L2_cache_size", 0)) or 64 << 20


def query() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; empty where it cannot be asked. Only reads."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")]
    return dict(zip(_QUERY, values, strict=False))


def sm_clock_hz() -> float | None:
    """The highest clock of the multiprocessors, which the exp2 floor is counted at."""
    digits = query().get("clocks.max.sm", "").split(" ")[0]
    return float(digits) * 1e6 if digits.isdigit() else None


def version(package: str) -> str | None:
    """A package's version; None where it cannot be imported."""
    try:
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))
    except Exception:  # a package of another torch fails in its own ways
        return None


def facts() -> dict[str, Any]:
    """Device, clocks, versions and date."""
    import torch

    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if has_gpu() else None,
        "nvidia_smi": query() if has_gpu() else {},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "ssm_export": version("ssm_export"),
        "date": datetime.date.today().isoformat(),
    }
    if has_gpu():
        here = chip()
        found["capability"] = ".".join(map(str, here.capability))
        found["multiprocessors"] = here.multiprocessors
        found["shared_memory_per_block"] = here.shared_memory
        found["l2_bytes"] = l2_bytes()
        for package in ("mamba_ssm", "causal_conv1d"):
            found[package] = version(package)
    return found
