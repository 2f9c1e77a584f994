"""Tables, bars and numbers as every verb shows them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

_PARTS: Final = " ▏▎▍▌▋▊▉█"
_WORDS: Final = (17, 13, 6)
"""Letters up to which words stay whole: the first for which the terminal is wide enough."""


@dataclass(frozen=True)
class Sheet:
    """A table of :func:`table`, laid out for the width it is printed at."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        around = 2 * len(self.columns)
        widths = self._widths(options.max_width - around)
        needed = max(options.max_width, sum(widths) + around)
        yield from console.render(self._made(widths), options.update(width=needed))

    def _widths(self, room: int) -> list[int]:
        """The width of each column: the widest that may be folded give way until all have room."""
        from rich.text import Text

        heads = [Text(column.rstrip(">!")) for column in self.columns]
        cells = [
            [head, *(Text.from_markup(row[at]) for row in self.rows)]
            for at, head in enumerate(heads)
        ]
        natural = [max(cell.cell_len for cell in column) for column in cells]
        words = [
            max((len(word) for cell in column for word in cell.plain.split()), default=0)
            for column in cells
        ]
        widths = natural
        for letters in _WORDS:
            least = [
                wide if _is_whole(at, self.columns[at]) else min(word, letters)
                for at, (wide, word) in enumerate(zip(natural, words, strict=True))
            ]
            widths = list(natural)
            while sum(widths) > room and widths != least:
                widest = max(
                    (at for at, width in enumerate(widths) if width > least[at]),
                    key=widths.__getitem__,
                )
                widths[widest] -= 1
            if sum(widths) <= room:
                break
        return widths

    def _made(self, widths: Sequence[int]) -> Table:
        from rich import box
        from rich.table import Table

        made = Table(
            title=plain(self.title),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for at, (column, width) in enumerate(zip(self.columns, widths, strict=True)):
            made.add_column(
                column.rstrip(">!"),
                justify="right" if column.endswith(">") else "left",
                overflow="fold",
                no_wrap=_is_whole(at, column),
                min_width=width,
                max_width=width,
            )
        for row in self.rows:
            made.add_row(*row)
        return made


def _is_whole(at: int, column: str) -> bool:
    return at == 0 or column.endswith((">", "!"))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Sheet:
    """A table for the terminal, of which nothing is ever cut.

    The first column, numbers and names stay on one line, even where that makes the table wider
    than the terminal (print it with ``crop=False``); what is too long elsewhere is folded.

    Args:
        title: above it.
        columns: their heads; one that ends in ``>`` is set flush right and holds numbers, one that
            ends in ``!`` holds names.
        rows: cells in rich markup; pass foreign text through :func:`plain`.
    """
    return Sheet(title, tuple(columns), tuple(map(tuple, rows)))


def plain(text: str) -> str:
    """Text without a meaning in rich markup."""
    from rich.markup import escape

    return escape(text)


def render(renderable: RenderableType, width: int = 100) -> str:
    """Something of rich as plain text without colours, for logs and README files."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(renderable, crop=False)
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
