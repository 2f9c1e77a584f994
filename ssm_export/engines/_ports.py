"""Inputs and outputs of a graph, and the check of what is fed to it.

Every runner checks feeds here before its runtime sees them, so a wrong name, shape or type gives
one clear error instead of the runtime's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError


@dataclass(frozen=True)
class Port:
    """One graph input or output: its name, numpy type name, and sizes or axis names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype} ({', '.join(str(size) for size in self.shape)})"


def check_feeds(
    form: str, ports: tuple[Port, ...], feeds: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """Compare what is fed with what the graph takes.

    Args:
        form: ``step`` or ``prefill``, for the message.
        ports: the inputs of the graph.
        feeds: the arrays by name.

    Returns:
        The size of every named axis, such as ``{"batch": 2, "time": 7}``.

    Raises:
        SsmExportError: ``BAD_FEED`` for a missing or unknown name, a wrong type, rank or size, or
            an axis that has two sizes in one call.
    """
    taken = {port.name for port in ports}
    missing = sorted(taken - set(feeds))
    unknown = sorted(set(feeds) - taken)
    if missing or unknown:
        parts = [f"lacks {_some(missing)}"] * bool(missing)
        parts += [f"has {_some(unknown)}, which the graph does not take"] * bool(unknown)
        raise _bad(form, f"what is fed {' and '.join(parts)}", ports)
    axes: dict[str, int] = {}
    set_by: dict[str, str] = {}
    for port in ports:
        array = feeds[port.name]
        shape = tuple(np.shape(array))
        if not isinstance(array, np.ndarray):
            raise _bad(form, f"'{port.name}' is {type(array).__name__}, not a numpy array", ports)
        if array.dtype.name != port.dtype:
            raise _bad(form, f"'{port.name}' is {array.dtype}, the graph takes {port.dtype}", ports)
        if len(shape) != len(port.shape) or not all(
            size == wanted
            for size, wanted in zip(shape, port.shape, strict=True)
            if isinstance(wanted, int)
        ):
            raise _bad(form, f"'{port.name}' has shape {shape}, the graph takes {port}", ports)
        for size, wanted in zip(shape, port.shape, strict=True):
            if size < 1:
                raise _bad(form, f"'{port.name}' has shape {shape}, which holds nothing", ports)
            if isinstance(wanted, str):
                if axes.setdefault(wanted, size) != size:
                    what = (
                        f"the axis '{wanted}' is {axes[wanted]} in '{set_by[wanted]}' "
                        f"and {size} in '{port.name}'"
                    )
                    raise _bad(form, what, ports)
                set_by.setdefault(wanted, port.name)
    return axes


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _bad(form: str, what: str, ports: tuple[Port, ...]) -> SsmExportError:
    shown = "; ".join(str(port) for port in ports[:4])
    more = f"; and {len(ports) - 4} more" if len(ports) > 4 else ""
    return SsmExportError(errors.BAD_FEED, what, where=f"{form} graph", fix=f"feed {shown}{more}")
