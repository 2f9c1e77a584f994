"""The one shape of every ``--json`` document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

DOCUMENT_VERSION: Final = 1


def document(verb: str, command: str | Sequence[str], body: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document: the head, then the members of ``body``.

    Args:
        verb: such as ``verify``; the schema is ``ssm-export/<verb>@1``.
        command: the command line, as one string or as its words.
        body: a report's ``as_json()``. Its ``ok`` goes into the head; without one it is true.
    """
    import shlex

    line = command if isinstance(command, str) else shlex.join(command)
    head = {
        "schema": f"ssm-export/{verb}@{DOCUMENT_VERSION}",
        "ok": bool(body.get("ok", True)),
        "command": line,
        "versions": versions(),
    }
    return head | {key: value for key, value in body.items() if key not in head}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, as far as they are installed."""
    from ssm_export.machine import tool_versions

    return dict(tool_versions())
