"""The machine of a bench, and what was sampled beside it."""

from __future__ import annotations

from typing import Any

from ssm_export.html_report import numbers
from ssm_export.html_report.inputs import Benched
from ssm_export.html_report.markup import Child, Markup, element, join
from ssm_export.html_report.sections.section import facts, note, sentence

_MOST_LEVELS = 3


def device(report: Benched) -> Markup:
    """Telemetry as a table, throttling above it; nothing where nothing was sampled."""
    sampled = report.telemetry
    if not sampled:
        return join(())
    said = [note(sentence(words)) for words in _list(sampled.get("notes"))]
    if not sampled.get("source"):
        return join(said)
    parts: list[Child] = []
    if throttled := _list(sampled.get("throttled")):
        reasons = ", ".join(throttled)
        badge = element("span", "throttled", class_="badge bad")
        parts.append(element("p", badge, f" The device held itself back: {reasons}."))
    rows = _flat({key: value for key, value in sampled.items() if key != "notes"})
    if rows:
        name = f"Sampled while it ran on {report.place}"
        made = facts(name, [(key, value) for key, value in rows])
        parts.append(element("details", element("summary", name), made))
    return join([*parts, *said])


def _list(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


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
