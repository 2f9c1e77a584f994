"""The page as a whole: head, verdict, key figures, contents, sections."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from ssm_export import __version__
from ssm_export.html_report import numbers
from ssm_export.html_report.markup import Markup, element, join
from ssm_export.html_report.reading import base_names
from ssm_export.html_report.sections.section import Page, Section, paragraph
from ssm_export.html_report.verdict import Tile, Verdict, tiles_of, verdict_of

_BADGES = {"passed": "good", "failed": "bad", "not verified": "none"}
_WORDS = {"passed": "PASSED", "failed": "FAILED", "not verified": "NOT VERIFIED"}


def style_sheet() -> str:
    """The style sheet, which the page carries inside."""
    return (resources.files("ssm_export.html_report") / "style.css").read_text(encoding="utf-8")


def document(page: Page, sections: list[Section]) -> str:
    """The whole file. It runs no script, and its policy lets it load nothing from anywhere."""
    style = Markup(style_sheet())
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = f"{page.inputs.name} – ssm-export report"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"ssm-export {__version__}"),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    verdict = verdict_of(page.inputs)
    main = element(
        "main",
        _unreadable(page),
        element("div", *map(_tile, tiles_of(page)), class_="tiles"),
        *map(_section, sections),
    )
    body = element(
        "body",
        element("a", "Skip to the report", href="#top", class_="skip"),
        _header(page, verdict),
        element("div", _contents(sections), main, class_="sheet", id="top"),
        _footer(page),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _header(page: Page, verdict: Verdict) -> Markup:
    manifest = page.inputs.bundle.manifest
    recipe = manifest.quantization.get("recipe")
    quantized = f", quantized by {recipe}" if recipe else ""
    source = base_names(manifest.source.get("path", ""))
    line = (
        f"A {manifest.family} model of {numbers.count(manifest.sizes.get('parameters'))} "
        f"parameters, exported from {source} in {manifest.precision}{quantized}."
    )
    state = verdict.state.replace(" ", "-")
    return element(
        "header",
        element(
            "div",
            element("p", "ssm-export report", class_="kind"),
            element("h1", page.inputs.name),
            element("p", line, class_="line"),
            element(
                "div",
                element("strong", _WORDS[verdict.state]),
                element("span", verdict.why),
                class_=f"verdict {_BADGES[verdict.state]}",
                id=f"verdict-{state}",
            ),
            class_="inside",
        ),
    )


def _unreadable(page: Page) -> Markup:
    if not page.inputs.unreadable:
        return join(())
    lines = [
        element("li", element("code", file), f": {why}")
        for file, why in sorted(page.inputs.unreadable.items())
    ]
    return element(
        "aside",
        element("strong", "These files of the bundle cannot be read and are left out:"),
        element("ul", *lines),
        class_="alarm",
    )


def _tile(tile: Tile) -> Markup:
    return element(
        "div",
        element("span", tile.name, class_="name"),
        element("span", tile.number, class_="number"),
        element("span", tile.of, class_="of"),
        class_="tile predicted" if tile.predicted else "tile",
    )


def _contents(sections: list[Section]) -> Markup:
    lines = [
        element(
            "li",
            element("a", one.title, href=f"#{one.name}", class_="empty" if one.empty else None),
        )
        for one in sections
    ]
    return element("nav", element("ol", *lines), aria_label="Contents")


def _section(one: Section) -> Markup:
    return element("section", element("h2", one.title), one.body, id=one.name)


def _footer(page: Page) -> Markup:
    created = page.inputs.bundle.manifest.created
    words = (
        f"Made by ssm-export {__version__} from the bundle's own reports. Bundle of {created}. "
        "Figures marked predicted are reckoned from sizes; everything else was measured."
    )
    return element("footer", paragraph(words))
