"""What sections are made of: figures with a table beside them, and what was not measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ssm_export.html_report.inputs import Inputs
from ssm_export.html_report.markup import Child, Markup, element, join
from ssm_export.prediction import Prediction
from ssm_export.targets import Target

_LONG = 14
"""Rows from which on a table scrolls on a screen; on paper it is whole."""
_TALL = 26
"""Rows from which on a table may be cut between two pages."""
_WORDY = 22
"""Letters from which on the head of a column takes several lines."""
_NAME_END = re.compile(r"(?<=[._/])(?=\w)")
"""Between two parts of a name."""


@dataclass(frozen=True)
class Page:
    """What every section is given.

    Attributes:
        inputs: everything that was read.
        target: the device of the roofline and of predictions; None where none is known.
        target_from: why it is this one, in words.
        predictions: for batches 1, 8 and 64 on the target; empty without one.
        no_prediction: why there is none; empty where there is one.
    """

    inputs: Inputs
    target: Target | None = None
    target_from: str = ""
    predictions: tuple[Prediction, ...] = ()
    no_prediction: str = ""

    def command(self, *words: str) -> str:
        """A command line of ours about this bundle, as a person would type it beside it."""
        verb, *options = words
        return shlex.join(["ssm-export", verb, self.inputs.name, *options])


@dataclass(frozen=True)
class Missing:
    """Something that the page could show, and the command that measures it."""

    what: str
    command: str


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    name: str
    title: str
    body: Markup
    missing: tuple[Missing, ...] = ()
    empty: bool = False

    @property
    def state(self) -> str:
        """``shown``, ``partly shown`` or ``not measured``."""
        if self.empty:
            return "not measured"
        return "partly shown" if self.missing else "shown"


@dataclass(frozen=True)
class Table:
    """A table: a column whose head ends in ``>`` is set flush right and holds numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Child, ...], ...]
    bad: frozenset[int] = field(default_factory=frozenset)
    """Rows that stand out."""

    def markup(self, name: str) -> Markup:
        """The table in a box of its own, which scrolls where it is too large for the screen."""
        numeric = [column.endswith(">") for column in self.columns]
        heads = [
            element("th", column.rstrip(">"), scope="col", class_=_head(column) if right else None)
            for column, right in zip(self.columns, numeric, strict=True)
        ]
        lines = []
        for index, row in enumerate(self.rows):
            cells = [
                element(
                    "th" if at == 0 else "td",
                    cell,
                    scope="row" if at == 0 else None,
                    class_="number" if numeric[at] else None,
                )
                for at, cell in enumerate(row)
            ]
            lines.append(element("tr", *cells, class_="bad" if index in self.bad else None))
        made = element(
            "table",
            element("caption", name),
            element("thead", element("tr", *heads)),
            element("tbody", *lines),
        )
        long = " long" if len(self.rows) > _LONG else ""
        long += " tall" if len(self.rows) > _TALL else ""
        return element(
            "div", made, class_=f"table{long}", role="region", aria_label=name, tabindex="0"
        )


def _head(column: str) -> str:
    """The class of a head over numbers: only a long one may take several lines."""
    return "number wordy" if len(column) > _WORDY else "number"


def figure(
    title: str,
    says: Child,
    plot: Markup | None,
    *tables: Markup,
    wide: bool = False,
    notes: Sequence[Markup] = (),
) -> Markup:
    """A plot with its title, what it shows in a sentence, and the numbers beside it; below it
    where the table is wide. Notes are below all."""
    parts = [element("h3", title), element("p", says)] if says else [element("h3", title)]
    beside = element("div", *tables, class_="numbers") if tables else None
    drawn = element("div", plot, class_="drawn") if plot is not None else None
    columns = "pair" if plot is not None and tables and not wide else "single"
    columns += " wide" if wide else ""
    return element(
        "figure",
        element("figcaption", *parts),
        element("div", drawn, beside, class_=columns),
        *notes,
    )


def paragraph(*words: Child) -> Markup:
    """A paragraph."""
    return element("p", *words)


def note(*words: Child) -> Markup:
    """A remark in small letters."""
    return element("p", *words, class_="note")


def code(words: str) -> Markup:
    """Names of the model's parts and files; they are broken behind their dots and never inside
    of a word."""
    parts = _NAME_END.split(words)
    return element("code", join(parts, element("wbr")))


def not_measured(missing: Iterable[Missing]) -> Markup:
    """What is not there, with the commands that would measure it."""
    lines = [
        element(
            "p",
            element("span", "not measured", class_="badge none"),
            f" {one.what}: run ",
            element("code", one.command, class_="command"),
            class_="missing",
        )
        for one in missing
    ]
    return join(lines)


def facts(name: str, rows: Sequence[tuple[Child, Child]]) -> Markup:
    """A table of names and values."""
    lines = [
        element("tr", element("th", key, scope="row"), element("td", value)) for key, value in rows
    ]
    made = element("table", element("caption", name), element("tbody", *lines), class_="facts")
    tall = " tall" if len(rows) > _TALL else ""
    return element("div", made, class_=f"table{tall}", role="region", aria_label=name, tabindex="0")


def join_words(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def sentence(words: str) -> str:
    """Words with a capital letter and a full stop."""
    return f"{words[:1].upper()}{words[1:]}".rstrip(".") + "."
