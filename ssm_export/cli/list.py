"""``ssm-export list models|ops|targets|recipes``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ssm_export.cli.common import Job, Result, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

KINDS = ("models", "ops", "targets", "recipes")
_LONG = frozenset(
    {
        "paper",
        "source",
        "attributes",
        "shared_memory_per_block_kb",
        "multiprocessors",
        "bandwidth_gb_s",
        "targets",
        "calibration",
        "rules",
    }
)
"""Keys that only the JSON document has: they would not fit into a line."""


@verb("list")
@click.argument("what", type=click.Choice(KINDS))
def command(job: Job, what: str) -> Result:
    """List the model families, operators, targets or recipes that this release knows."""
    from ssm_export import api

    items = api.list_items(what)
    return Result({"what": what, "items": items}, lambda: _table(what, items))


def _table(what: str, items: Sequence[dict[str, Any]]) -> RenderableType:
    from ssm_export.documents.tables import plain, table

    keys = [key for key in items[0] if key not in _LONG] if items else ["name"]
    rows = [[plain(_cell(item[key])) for key in keys] for item in items]
    return table(what, [key.replace("_", " ") for key in keys], rows)


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value)
    return "–" if value in (None, "") else str(value)
