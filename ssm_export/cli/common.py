"""What every verb has: ``--json``, ``--quiet``, ``--config`` and ``--set``, and how it reports."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import click

from ssm_export.cli.defaults import read_assignments, read_config
from ssm_export.cli.running import failure_body, result_stream
from ssm_export.errors import SsmExportError
from ssm_export.progress import Progress, terminal_progress

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLUMNS = 110
"""Columns of a table where stdout is no terminal and ``COLUMNS`` says nothing."""


@dataclass(frozen=True)
class Job:
    """What a verb is given beside its options.

    Attributes:
        progress: bars on stderr, or nothing.
        as_json: the result will be a JSON document.
        out: the true stdout, for text that appears while the verb works.
    """

    progress: Progress
    as_json: bool
    out: TextIO


@dataclass(frozen=True)
class Result:
    """What a verb gives back.

    Attributes:
        members: of the JSON document.
        table: makes what people see; a string is written as it is, never wrapped.
        failure: the error that the command ends with although there is a result to show.
    """

    members: Mapping[str, Any]
    table: Callable[[], RenderableType] | None = None
    failure: SsmExportError | None = None


@dataclass(frozen=True)
class Outcome:
    """A verb's result and the options that say how to show it."""

    verb: str
    result: Result
    quiet: bool

    @property
    def failure(self) -> SsmExportError | None:
        """The error the command ends with."""
        return self.result.failure

    def body(self) -> dict[str, Any]:
        """The members of the JSON document."""
        body = dict(self.result.members)
        return body if self.failure is None else {**body, **failure_body(self.failure)}

    def show(self, out: TextIO) -> None:
        """Write the result for people."""
        if self.result.table is None:
            return
        from rich.console import Console

        made = self.result.table()
        if isinstance(made, str):
            out.write(made.rstrip("\n") + "\n")
        else:
            width = None if out.isatty() else _asked_columns()
            Console(file=out, width=width, highlight=False).print(made, crop=False)
        out.flush()


def _asked_columns() -> int:
    asked = os.environ.get("COLUMNS", "")
    return int(asked) if asked.isdecimal() and int(asked) else _COLUMNS


_OPTIONS = (
    click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout."),
    click.option("-q", "--quiet", is_flag=True, help="No tables and no progress bars."),
    click.option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=read_config,
        help="YAML with defaults of options by verb, such as a bundle's effective_config.yaml.",
    ),
    click.option(
        "--set",
        "assignments",
        metavar="VERB.OPTION=VALUE",
        multiple=True,
        is_eager=True,
        expose_value=False,
        callback=read_assignments,
        help="One default, over those of --config. Repeatable.",
    ),
)


def verb(name: str) -> Callable[[Callable[..., Result]], click.Command]:
    """Make ``(job, **options) -> Result`` the verb ``name``; its docstring is the help."""

    def wrap(function: Callable[..., Result]) -> click.Command:
        @functools.wraps(function)
        def call(as_json: bool, quiet: bool, **options: Any) -> Outcome:
            with result_stream() as out, terminal_progress(not quiet) as progress:
                result = function(Job(progress, as_json, out), **options)
            return Outcome(name, result, quiet)

        decorated: Any = call
        for option in reversed(_OPTIONS):
            decorated = option(decorated)
        return click.command(name)(decorated)

    return wrap


class Integers(click.ParamType):
    """Positive integers with commas between them: ``128,1024``."""

    name = "N[,N…]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        try:
            numbers = tuple(
                int(part) for part in (parts if not isinstance(parts, int) else [parts])
            )
        except (TypeError, ValueError):
            self.fail(f"'{value}' is no list of whole numbers such as 128,1024.", param, ctx)
        if not numbers or min(numbers) < 1:
            self.fail(f"'{value}' has a number below 1.", param, ctx)
        return numbers


POSITIVE = click.IntRange(min=1)
"""Type of an option that counts something."""


@dataclass(frozen=True)
class Facts:
    """A table of names and values, for verbs whose result is not a table already."""

    title: str
    rows: tuple[tuple[str, str], ...] = field(default=())

    def table(self) -> RenderableType:
        """The table for a terminal."""
        from ssm_export.documents.tables import plain, table

        return table(self.title, ("", ""), [(name, plain(value)) for name, value in self.rows])
