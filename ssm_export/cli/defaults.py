"""``--config FILE`` and ``--set verb.option=value``: defaults of options from YAML.

What is written on the command line wins over ``--set``, which wins over ``--config``. A file has a
section for each verb; sections of other verbs are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Final

import click

from ssm_export import errors
from ssm_export.errors import SsmExportError

_CONFIG: Final = "ssm_export.config"
_ASSIGNED: Final = "ssm_export.assigned"
_NOT_SETTABLE: Final = frozenset({"as_json", "quiet", "assignments", "config", "help"})

Sections = dict[str, dict[str, Any]]


def read_config(ctx: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    """Callback of ``--config``: take the verb's section as defaults."""
    if path is None:
        return
    import yaml

    try:
        with open(path, encoding="utf-8") as stream:
            document = yaml.safe_load(stream) or {}
    except FileNotFoundError as error:
        raise SsmExportError(
            errors.NO_SUCH_PATH, f"there is no file '{path}'", where="--config"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _bad(path, f"not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(document, dict):
        raise _bad(path, f"holds a {type(document).__name__}, not a section for each verb")
    for section, values in document.items():
        if not isinstance(values, dict):
            raise _bad(path, f"'{section}' is {values!r}, not a section of options")
    ctx.meta[_CONFIG] = document
    _apply(ctx, path)


def read_assignments(
    ctx: click.Context, _parameter: click.Parameter, assignments: tuple[str, ...]
) -> None:
    """Callback of ``--set``: take the assignments to this verb as defaults."""
    if not assignments:
        return
    import yaml

    assigned: Sections = {}
    for assignment in assignments:
        where = f"--set {assignment}"
        name, equals, text = assignment.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise _bad(where, "not of the form verb.option=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise _bad(where, f"'{text}' is not readable as YAML") from error
        assigned.setdefault(section, {})[key] = value
    ctx.meta[_ASSIGNED] = assigned
    _apply(ctx, "--set")


def _apply(ctx: click.Context, where: str) -> None:
    """Make the sections the defaults of the command that is being parsed."""
    verbs = _verbs(ctx)
    names = {
        parameter.name or ""
        for parameter in ctx.command.params
        if isinstance(parameter, click.Option) and parameter.name not in _NOT_SETTABLE
    }
    defaults: dict[str, Any] = {}
    for source in (ctx.meta.get(_CONFIG, {}), ctx.meta.get(_ASSIGNED, {})):
        for section, values in source.items():
            if section not in verbs:
                raise _bad(where, f"there is no verb '{section}'", str(section), verbs)
            if section != ctx.info_name:
                continue
            for key, value in values.items():
                name = str(key).replace("-", "_")
                if name not in names:
                    what = f"'{section}' has no option '{key}'"
                    raise _bad(where, what, name, sorted(names))
                defaults[name] = value
    ctx.default_map = {name: value for name, value in defaults.items() if value is not None}


def _verbs(ctx: click.Context) -> list[str]:
    parent = ctx.parent
    if parent is not None and isinstance(parent.command, click.Group):
        return parent.command.list_commands(parent)
    return [ctx.info_name or ""]


def _bad(where: str, what: str, name: str = "", known: Iterable[str | None] = ()) -> SsmExportError:
    choices = [choice for choice in known if choice]
    near = get_close_matches(name, choices, n=1, cutoff=0.5)
    fix = f"did you mean '{near[0]}'?" if near else ", ".join(choices)
    return SsmExportError(
        errors.BAD_CONFIG_FILE, what, where=where, fix=fix or "write  export: {precision: fp16}"
    )
