"""Tables, bars and numbers as every verb shows them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_PARTS: Final = " ▏▎▍▌▋▊▉█"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for the terminal.

    Args:
        title: above it.
        columns: their heads; one that ends in ``>`` is set flush right.
        rows: cells in rich markup; pass foreign text through :func:`plain`.
    """
    from rich import box
    from rich.table import Table

    made = Table(title=plain(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.endswith(">")
        made.add_column(column.removesuffix(">"), justify="right" if right else "left")
    for row in rows:
        made.add_row(*row)
    return made


def plain(text: str) -> str:
    """Text without a meaning in rich markup."""
    from rich.markup import escape

    return escape(text)


def render(renderable: RenderableType, width: int = 100) -> str:
    """Something of rich as plain text without colours, for logs and README files."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(renderable)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip() + "\n"


def bar(value: float, maximum: float, width: int = 24) -> str:
    """A bar as long as ``value`` is of ``maximum``, to an eighth of a character."""
    share = min(max(value / maximum, 0.0), 1.0) if maximum > 0 else 0.0
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_PARTS[rest] if rest else "")


def size(count: float) -> str:
    """Bytes in words: ``517 MB``, ``1.4 kB``; decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def shape(sizes: Iterable[int | str]) -> str:
    """``(batch, 3, 1536)``."""
    return "(" + ", ".join(str(item) for item in sizes) + ")"
