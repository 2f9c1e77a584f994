"""Make the page of a bundle and write it, whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ssm_export import errors
from ssm_export.bundle import Bundle, write_atomically
from ssm_export.errors import SsmExportError
from ssm_export.html_report.inputs import QUANTIZE, Inputs, read_inputs
from ssm_export.html_report.page import document
from ssm_export.html_report.reading import Malformed
from ssm_export.html_report.sections import SECTIONS, Page, Section
from ssm_export.html_report.verdict import verdict_of
from ssm_export.prediction import Prediction, predict
from ssm_export.targets import Target, get_target

if TYPE_CHECKING:
    from rich.console import RenderableType

DEFAULT: Final = "reports/report.html"
_BATCHES: Final = (1, 8, 64)


@dataclass(frozen=True)
class HtmlReport:
    """A page that was written.

    Attributes:
        path: of the file.
        bytes: its size.
        verdict: ``passed``, ``failed`` or ``not verified``, as its head says.
        target: the device of its roofline; None where none is known.
        sections: name and ``shown``, ``partly shown`` or ``not measured``.
        missing: what it could show, and the command that measures it.
        unreadable: file of the bundle to the reason why it was left out.
    """

    path: str
    bytes: int
    verdict: str
    target: str | None
    sections: tuple[tuple[str, str], ...]
    missing: tuple[tuple[str, str], ...]
    unreadable: dict[str, str]

    @property
    def ok(self) -> bool:
        """Every report that is there could be read. What was not measured is no failure."""
        return not self.unreadable

    def as_json(self) -> dict[str, Any]:
        """The members of the ``ssm-export/report@1`` document."""
        return {
            "ok": self.ok,
            "path": self.path,
            "bytes": self.bytes,
            "verdict": self.verdict,
            "target": self.target,
            "sections": [{"name": name, "state": state} for name, state in self.sections],
            "missing": [{"what": what, "command": command} for what, command in self.missing],
            "unreadable": [
                {"file": file, "why": why} for file, why in sorted(self.unreadable.items())
            ],
        }

    def table(self) -> RenderableType:
        """The report about the report, for a terminal."""
        from rich.console import Group
        from rich.text import Text

        from ssm_export.documents import tables

        rows = [(name, state) for name, state in self.sections]
        rows += [("not measured", f"{what}: {command}") for what, command in self.missing]
        rows += [("cannot be read", f"{file}: {why}") for file, why in self.unreadable.items()]
        # A path is there to be copied, so it is never broken.
        title = f"{self.path} ({tables.size(self.bytes)}), {self.verdict}"
        cells = [(name, tables.plain(words)) for name, words in rows]
        return Group(
            Text(title, no_wrap=True, overflow="ignore"),
            tables.table("", ("section", ""), cells),
        )


def make_report(
    bundle: Bundle | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    target: str | None = None,
) -> HtmlReport:
    """Write one HTML file that shows everything the bundle and its reports say.

    The file needs no network, runs no script, and is the same to the byte for the same bundle.

    Args:
        bundle: an open bundle or its folder. Its hashes are compared; a changed file is said on
            the page and is no exception.
        output: the file to write, replacing an older one; ``reports/report.html`` of the bundle
            when None.
        target: the device of the roofline and the predictions, a name of ``list targets``; the
            one that a report of bench, an engine or the options name when None.

    Raises:
        SsmExportError: ``UNKNOWN_TARGET``; ``NO_SUCH_PATH`` or ``NO_PERMISSION`` for an output that
            cannot be written; whatever opening the bundle raises.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle, check_hashes=False)
    path = _output(bundle, output)
    asked = get_target(target) if target is not None else None
    inputs = read_inputs(bundle)
    try:
        page, sections, text = _made(inputs, asked)
    except Malformed as reason:  # only quantize's members are read where they are shown
        unreadable = {**inputs.unreadable, QUANTIZE: str(reason)}
        inputs = dataclasses.replace(inputs, quantized=None, unreadable=unreadable)
        page, sections, text = _made(inputs, asked)
    _write(path, text)
    return HtmlReport(
        path=str(path),
        bytes=len(text.encode()),
        verdict=verdict_of(page.inputs).state,
        target=page.target.name if page.target is not None else None,
        sections=tuple((one.name, one.state) for one in sections),
        missing=_distinct(sections),
        unreadable=page.inputs.unreadable,
    )


def _made(inputs: Inputs, asked: Target | None) -> tuple[Page, list[Section], str]:
    page = make_page(inputs, asked)
    sections = [make(page) for make in SECTIONS.values()]
    return page, sections, document(page, sections)


def make_page(inputs: Inputs, asked: Target | None) -> Page:
    """The page's data with its target and what is predicted for it."""
    target, named_by = (asked, "as asked") if asked is not None else _recorded(inputs)
    if target is None:
        return Page(inputs)
    predictions: tuple[Prediction, ...] = ()
    why = ""
    try:
        predictions = tuple(predict(inputs.bundle, target, batch=batch) for batch in _BATCHES)
    except (SsmExportError, KeyError, OSError, ValueError) as error:
        what = error.what if isinstance(error, SsmExportError) else str(error)
        why = f"Nothing can be predicted for {target.name}: {what}."
    return Page(inputs, target, named_by, predictions, why)


def _recorded(inputs: Inputs) -> tuple[Target | None, str]:
    """The first device with a known bandwidth that a bench, an engine or the options name."""
    named = [(report.target, f"target of {report.file}") for report in inputs.benched]
    named += [(engine.target, "target of an engine") for engine in inputs.bundle.manifest.engines]
    named += [
        (value, f"target of {verb}") for verb, name, value in inputs.config if name == "target"
    ]
    for name, why in named:
        try:
            target = get_target(name)
        except SsmExportError:  # a target of another release, or none
            continue
        if target.bandwidth_gb_s is not None:
            return target, why
    return None, ""


def _distinct(sections: list[Section]) -> tuple[tuple[str, str], ...]:
    found = [(one.what, one.command) for section in sections for one in section.missing]
    return tuple(dict.fromkeys(found))


def _output(bundle: Bundle, output: str | os.PathLike[str] | None) -> Path:
    if output is None:
        return bundle.path / DEFAULT
    path = Path(output)
    if path.is_dir():
        raise SsmExportError(
            errors.BAD_OPTION,
            f"'{path}' is a folder",
            where="-o",
            fix=f"name a file: -o {path / 'report.html'}",
        )
    if not path.parent.is_dir():
        raise SsmExportError(
            errors.NO_SUCH_PATH,
            f"there is no folder '{path.parent}'",
            where="-o",
            fix=f"mkdir -p {path.parent}",
        )
    return path


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text)
    except OSError as error:  # not allowed, a file system that is only read, a file in the way
        raise SsmExportError(
            errors.NO_PERMISSION,
            f"'{path}' cannot be written ({error.strerror})",
            fix="give -o FILE.html in a folder of yours",
        ) from error
