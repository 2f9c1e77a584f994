"""A report as a file: JSON to compare with later, CSV for a spreadsheet, Markdown to paste."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.benchmarking.comparison import row_name
from ssm_export.benchmarking.report import BenchReport, Row
from ssm_export.benchmarking.screen import facts, reading, verdicts
from ssm_export.bundle import write_atomically
from ssm_export.documents.document import DOCUMENT_VERSION
from ssm_export.errors import SsmExportError

COLUMNS: Final = tuple(field.name for field in fields(Row) if field.name != "quantiles_ms")
"""Columns of the CSV: the members of a row."""


def check_outputs(paths: Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """The files to write, before anything is measured. A file that is there is written anew.

    Raises:
        SsmExportError: ``BAD_OPTION`` for a suffix that stands for no format or a folder,
            ``NO_SUCH_PATH`` for a file in a folder that is not there.
    """
    files = tuple(Path(path) for path in paths)
    for file in files:
        if file.suffix.lower() not in FORMATS:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"'{file.name}' ends in no format that bench writes",
                where="--output",
                fix=f"give a file that ends in {', '.join(FORMATS)}",
            )
        if file.is_dir():
            raise SsmExportError(
                errors.BAD_OPTION, f"'{file}' is a folder", where="--output", fix="name a file"
            )
        if not file.parent.is_dir():
            raise SsmExportError(
                errors.NO_SUCH_PATH,
                f"there is no folder '{file.parent}'",
                where="--output",
                fix=f"mkdir -p {file.parent}",
            )
    return files


def left_alone(files: Sequence[Path], baseline: Path | None) -> tuple[Path, ...]:
    """Those of the files that are the baseline, under whatever name: they are not to be written.

    A baseline that followed every run would never show that each is a little slower.
    """
    if baseline is None or not baseline.exists():
        return ()
    return tuple(file for file in files if file.exists() and file.samefile(baseline))


def left_alone_note(kept: Sequence[Path]) -> tuple[str, ...]:
    """What to say of the files that were not written."""
    return tuple(
        f"{file} is the baseline and was left as it was; --output ANOTHER.json keeps this report."
        for file in dict.fromkeys(kept)
    )


def write_outputs(report: BenchReport, files: Sequence[Path]) -> None:
    """Write the report in the format of each file's suffix."""
    for file in files:
        write_atomically(file, FORMATS[file.suffix.lower()](report))


def as_json(report: BenchReport) -> str:
    """The report as one JSON document, which ``--baseline`` reads."""
    head = {"schema": f"ssm-export/bench@{DOCUMENT_VERSION}"}
    return json.dumps({**head, **report.as_json()}, indent=2) + "\n"


def as_csv(report: BenchReport) -> str:
    """The rows as CSV; what a row does not have is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in report.rows)
    return text.getvalue()


def as_markdown(report: BenchReport) -> str:
    """The rows as a Markdown table, with what they depend on below."""
    optional = [
        ("GB/s", lambda row: _shown(row.gb_per_s, "{:.1f}")),
        ("mJ/token", lambda row: _shown(row.energy_mj_per_token, "{:.3g}")),
        ("of the predicted ceiling", lambda row: _shown(row.ceiling_share, "{:.1%}")),
    ]
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("measured", lambda row: row_name(row)),
        ("p50 ms", lambda row: f"{row.p50_ms:.3f}"),
        ("p90", lambda row: f"{row.p90_ms:.3f}"),
        ("p99", lambda row: f"{row.p99_ms:.3f}"),
        ("max", lambda row: f"{row.max_ms:.3f}"),
        ("jitter", lambda row: f"{row.jitter_ms:.3f}"),
        ("tokens/s", lambda row: f"{row.tokens_per_s:,.0f}"),
        *(item for item in optional if any(item[1](row) for row in report.rows)),
    ]
    lines = [
        f"# {report.runner} ({report.device}), {report.lowering} graphs, {report.precision}",
        "",
        _line([head for head, _ in columns]),
        _line(["---", *["---:"] * (len(columns) - 1)]),
        *(_line([show(row) for _, show in columns]) for row in report.rows),
        "",
        *(f"- {line}" for line in (*reading(report), *facts(report))),
    ]
    if report.comparison is not None:
        lines += ["", f"## Against {report.comparison.baseline}", ""]
        lines += [f"- {line}" for line in verdicts(report.comparison)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


FORMATS: Final[dict[str, Callable[[BenchReport], str]]] = {
    ".md": as_markdown,
    ".csv": as_csv,
    ".json": as_json,
}
"""How a report is written, by the suffix of its file."""
