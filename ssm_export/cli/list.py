"""``ssm-export list models|ops|targets|recipes``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ssm_export.cli.common import Job, Result, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

KINDS = ("models", "ops", "targets", "recipes")
_LONG = frozenset({"paper", "source", "attributes", "targets", "calibration", "rules"})
"""Keys that only the JSON document has: they would not fit into a line."""
_ENGINES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


@verb("list")
@click.argument("what", type=click.Choice(KINDS))
def command(job: Job, what: str) -> Result:
    """List the model families, operators, targets or recipes that this release knows."""
    from ssm_export import api

    items = api.list_items(what)
    return Result({"what": what, "items": items}, lambda: _table(what, items))


def _table(what: str, items: Sequence[dict[str, Any]]) -> RenderableType:
    from ssm_export.documents.tables import plain, table

    if what == "targets":
        heads = ("name", "chip>", "memory", "GB/s>", "8 and 4 bits", "builds with!")
        return table(what, heads, [[plain(cell) for cell in _target(item)] for item in items])
    keys = [key for key in items[0] if key not in _LONG] if items else ["name"]
    rows = [[plain(_cell(item[key])) for key in keys] for item in items]
    return table(what, [key.replace("_", " ") for key in keys], rows)


def _target(item: dict[str, Any]) -> tuple[str, ...]:
    """A target in one line; sources, power modes and the rest are in the JSON document."""
    memory = f"{item['memory_gb']:g} GB" if item["memory_gb"] else "–"
    rates = {mode["bandwidth_gb_s"] for mode in item["power_modes"]} | {item["bandwidth_gb_s"]}
    bandwidth = "–".join(f"{rate:g}" for rate in sorted(rates)) if None not in rates else "–"
    software = ", ".join(_ENGINES[kind] for kind in item["engines"])
    if item["jetpack"]:
        software += f" {item['tensorrt']} (JetPack {item['jetpack'][0]['release']}+)"
    return (
        item["name"],
        item["compute_capability"],
        memory + (" shared" if item["unified_memory"] else ""),
        bandwidth,
        " ".join(name for name in item["formats"] if name not in item["precisions"]),
        software,
    )


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value)
    return "–" if value in (None, "") else str(value)
