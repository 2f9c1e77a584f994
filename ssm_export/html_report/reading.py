"""Reading JSON members of a known kind: what is not as expected is named, never passed on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_PATH: Final = re.compile(r"(?<![\w.:/\\~])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:'\",;()]+){2,}[/\\]?")
"""A path of a machine inside a sentence: absolute, with two parts at least."""
_WHOLE_PATH: Final = re.compile(r"(?:~|[A-Za-z]:)?[/\\][^:]*")
"""A text that is a path from its beginning to its end, or to a colon; it may hold spaces."""

_HUGE: Final = 1e100
_TINY: Final = 1e-100
"""Numbers beyond these are of a broken report, and no axis could be drawn around them."""
_MOST: Final = 10**15
"""Likewise of whole numbers."""


class Malformed(Exception):  # noqa: N818  # it is an answer, not an error
    """A file that cannot be read, with the reason in words."""


class Members:
    """The members of a JSON object, each asked for by its name and kind.

    Args:
        document: what was read.
        where: how messages call it, such as ``rows[3]``.
    """

    def __init__(self, document: object, where: str = "") -> None:
        if not isinstance(document, dict):
            raise Malformed(f"{where or 'the document'} is not an object")
        self._document: dict[str, Any] = document
        self._where = f"{where}." if where else ""

    def __contains__(self, name: str) -> bool:
        return self._document.get(name) is not None

    def text(self, name: str, otherwise: str | None = None) -> str:
        """A text; the other one where it is left out."""
        return str(self._of(name, str, "a text", otherwise))

    def flag(self, name: str) -> bool | None:
        """True, false, or null, which stands for neither."""
        value = self._document.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def number(self, name: str) -> float | None:
        """A number; None where it is left out, null or not finite."""
        value = self._document.get(name)
        if value in ("inf", "-inf", "nan"):
            return None
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise self._wrong(name, value, "a number")
        return None if value is None else finite(value)

    def needed(self, name: str) -> float:
        """A finite number that has to be there."""
        value = self.number(name)
        if value is None:
            raise self._wrong(name, self._document.get(name), "a finite number")
        return value

    def whole(self, name: str, otherwise: int | None = None) -> int:
        """A whole number that is not negative."""
        value = self._document.get(name, otherwise)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
            raise self._wrong(name, value, "a whole number")
        return value

    def items(self, name: str) -> list[Any]:
        """A list; empty where it is left out."""
        return list(self._of(name, list, "a list", []))

    def objects(self, name: str) -> Iterator[Members]:
        """The objects of a list."""
        for index, item in enumerate(self.items(name)):
            yield Members(item, f"{self._where}{name}[{index}]")

    def child(self, name: str) -> Members:
        """An object; empty where it is left out or null."""
        return Members(self._document.get(name) or {}, f"{self._where}{name}")

    def facts(self, name: str) -> dict[str, str]:
        """An object whose values are shown as they are; empty where it is left out."""
        return {str(key): str(value) for key, value in self.child(name)._document.items()}

    def tree(self, name: str) -> dict[str, Any]:
        """An object whose members may be anything; empty where it is left out or null."""
        return dict(self.child(name)._document)

    def names(self) -> list[str]:
        """The names of all members."""
        return [str(name) for name in self._document]

    def _of(self, name: str, kind: type, called: str, otherwise: object) -> Any:
        value = self._document.get(name)
        value = otherwise if value is None else value
        if not isinstance(value, kind):
            raise self._wrong(name, value, called)
        return value

    def _wrong(self, name: str, value: object, called: str) -> Malformed:
        if value is None:
            return Malformed(f"{self._where}{name} is missing")
        return Malformed(f"{self._where}{name} is {str(value)[:40]!r}, not {called}")


def finite(value: float) -> float | None:
    """The value as a float; None where it is no finite one, or beyond anything that is measured."""
    try:
        wide = float(value)
    except OverflowError:
        return None
    if abs(wide) < _TINY:
        return 0.0
    return wide if abs(wide) < _HUGE else None


def read_json(path: Path) -> Any:
    """What a JSON file holds, without paths of the machine it was written on.

    Raises:
        Malformed: it cannot be read, or is no JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return without_paths(json.loads(text))
    except OSError as error:
        raise Malformed(f"cannot be read ({error.strerror or type(error).__name__})") from error
    except UnicodeDecodeError as error:
        raise Malformed("not text in UTF-8") from error
    except json.JSONDecodeError as error:
        end = " (it ends too early)" if error.pos >= len(text.rstrip()) else ""
        raise Malformed(f"no JSON from line {error.lineno} on{end}") from error
    except RecursionError as error:
        raise Malformed("nested too deeply") from error


def without_paths(value: Any) -> Any:
    """The same with every absolute path in its texts cut to its last part.

    A page is handed on, and the folders of whoever made the bundle are no business of its readers.
    """
    if isinstance(value, str):
        return base_names(value)
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, dict):
        return {base_names(str(key)): without_paths(item) for key, item in value.items()}
    return value


def base_names(text: str) -> str:
    """A text whose absolute paths have become the names of their files."""
    whole = _WHOLE_PATH.match(text)
    if whole and whole.end() > 2:
        return _last(whole[0]) + base_names(text[whole.end() :])
    return _PATH.sub(lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
