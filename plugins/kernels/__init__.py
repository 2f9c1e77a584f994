"""Triton kernels: one module per operator, found by its file's name.

A module defines ``plans(spec, call, chip) -> Iterator[Plan]``: the ways to compute a call on a
chip, best first. The kernels beside it are the only GPU code of the project.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

from ssm_export.ops import Call, OpSpec
from ssm_export_plugins.plan import Chip, Plan


def file_name(op: str) -> str:
    """``SsdScan`` → ``ssd_scan``, ``CausalConv1d`` → ``causal_conv1d``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", op).lower()


def kernel_modules() -> tuple[str, ...]:
    """The file names of the operators that have kernels."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name[0] != "_"))


def has_kernels(op: str) -> bool:
    """Whether there are kernels for an operator."""
    return file_name(op) in kernel_modules()


def plans(spec: OpSpec, call: Call, chip: Chip) -> Iterator[Plan]:
    """The ways to compute one call on a chip, best first.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED`` when the call is beyond what the kernels do.
    """
    module: Any = importlib.import_module(f"{__name__}.{file_name(spec.name)}")
    yield from module.plans(spec, call, chip)
