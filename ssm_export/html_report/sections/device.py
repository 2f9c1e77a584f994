"""The machine of a bench, and what was sampled beside it."""

from __future__ import annotations

from typing import Any

from ssm_export.html_report import numbers
from ssm_export.html_report.doubts import device_doubts, texts
from ssm_export.html_report.inputs import Benched
from ssm_export.html_report.markup import Markup, element, join
from ssm_export.html_report.sections.section import facts, note, sentence

_MOST_LEVELS = 3


def device(report: Benched) -> Markup:
    """Telemetry as a table, what slowed the device above it; nothing where nothing was sampled."""
    sampled = report.telemetry
    if not sampled:
        return join(())
    said = [note(sentence(words)) for words in texts(sampled.get("notes"))]
    # Outside of the folded table: it changes what every time above means.
    parts = [element("p", doubt.badge, f" {doubt.says}") for doubt in device_doubts(report)]
    if not sampled.get("source"):
        return join([*parts, *said])
    rows = _flat({key: value for key, value in sampled.items() if key != "notes"})
    if rows:
        name = f"Sampled while it ran on {report.place}"
        made = facts(name, [(key, value) for key, value in rows])
        parts.append(element("details", element("summary", name), made))
    return join([*parts, *said])


def _flat(value: Any, prefix: str = "", level: int = 0) -> list[tuple[str, str]]:
    """Nested members as names with dots and values in words; what is empty is left out."""
    if isinstance(value, dict) and level < _MOST_LEVELS:
        found: list[tuple[str, str]] = []
        for key, item in value.items():
            name = f"{prefix} · {key}" if prefix else str(key)
            found += _flat(item, name.replace("_", " "), level + 1)
        return found
    words = _in_words(value)
    return [(prefix, words)] if words else []


def _in_words(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return numbers.significant(value, 4) if abs(value) < 1e15 else f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    return str(value)
