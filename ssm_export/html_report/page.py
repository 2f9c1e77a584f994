"""The page as a whole: head, verdict, key figures, contents, sections."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from ssm_export import __version__
from ssm_export.html_report import numbers
from ssm_export.html_report.doubts import Doubt, doubts_of
from ssm_export.html_report.markup import Markup, element, join
from ssm_export.html_report.reading import base_names
from ssm_export.html_report.sections.section import Page, Section, paragraph
from ssm_export.html_report.verdict import Tile, Verdict, tiles_of, verdict_of

_MOST_BADGES = 2
"""Of one key figure."""
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
                *_doubts(page),
                class_=f"verdict {_BADGES[verdict.state]}",
                id=f"verdict-{state}",
            ),
            class_="inside",
        ),
    )


def _doubts(page: Page) -> list[Markup]:
    """Runs whose times are in doubt: a verdict is read before any of the times."""
    weights = page.inputs.bundle.manifest.weights.sha256
    lines = []
    for report in page.inputs.benched:
        if doubts := doubts_of(report, weights):
            badges = join([doubt.badge for doubt in doubts], " ")
            says = " ".join(doubt.says for doubt in doubts)
            words = [f"Times of {report.place}: ", badges, f" {says}"]
            lines.append(element("p", *words, class_="doubts"))
    return lines


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
        _badges(tile.doubts) if tile.doubts else None,
        class_="tile predicted" if tile.predicted else "tile",
    )


def _badges(doubts: Sequence[Doubt]) -> Markup:
    """The worst of them and how many more; the verdict has them all."""
    badges = [doubt.badge for doubt in doubts[:_MOST_BADGES]]
    if rest := doubts[_MOST_BADGES:]:
        title = " ".join(doubt.says for doubt in rest)
        badges.append(element("span", f"+ {len(rest)}", class_="badge warn", title=title))
    return element("span", join(badges, " "), class_="doubts")


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
