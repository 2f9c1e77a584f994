"""Run a command line from its words to its exit status; every way to fail ends here.

stdout belongs to the result. While a verb works, whatever else writes to stdout, native libraries
included, goes to stderr.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from ssm_export import errors
from ssm_export.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, SsmExportError, missing_package

if TYPE_CHECKING:
    from ssm_export.cli.common import Outcome

PROGRAM: Final = "ssm-export"
_EXTRAS: Final = {
    "torch": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "onnxruntime": "cpu",
    "tensorrt_rtx": "rtx",
    "tensorrt": "tensorrt",
    "triton": "kernels",
    "tokenizers": "generate",
    "transformers": "dev",
    "huggingface_hub": "hub",
}
"""Module that may be absent to the extra of ours that brings it."""


def run(group: click.Group, args: list[str]) -> int:
    """Run ``ssm-export *args`` and give its exit status; raises nothing."""
    if not args:
        click.echo(group.get_help(click.Context(group, info_name=PROGRAM)))
        return EXIT_USAGE
    try:
        return _run(group, args)
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except BrokenPipeError:  # whoever read stdout has left, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _run(group: click.Group, args: list[str]) -> int:
    began = time.perf_counter()
    command = shlex.join([PROGRAM, *args])
    as_json = "--json" in args
    try:
        with terminable():
            outcome = _call(group, args)
        if as_json:
            _write_json(outcome.verb, command, outcome.body())
        elif not outcome.quiet:
            outcome.show(sys.stdout)
        error = outcome.failure
    except (click.exceptions.Exit, BrokenPipeError):
        raise
    except BaseException as raised:
        error = as_our_error(raised)
        if as_json:
            _write_json(verb_of(group, args), command, failure_body(error))
    if error is not None:
        say(str(error))
    seconds = time.perf_counter() - began
    one_line = command.replace("\n", "\\n")  # a prompt may have several lines
    say(f"{'PASSED' if error is None else 'FAILED'}  {seconds:.1f} s  {one_line}")
    return EXIT_DONE if error is None else error.code.exit_status


def _call(group: click.Group, args: list[str]) -> Outcome:
    with group.make_context(PROGRAM, list(args)) as context:
        outcome: Outcome = group.invoke(context)
        return outcome


def say(line: str) -> None:
    """A line for people, on stderr."""
    print(line, file=sys.stderr, flush=True)


def as_our_error(raised: BaseException) -> SsmExportError:
    """Whatever was raised as an error with a code."""
    if isinstance(raised, SsmExportError):
        return raised
    if isinstance(raised, (KeyboardInterrupt, click.Abort)):
        return SsmExportError(
            errors.INTERRUPTED, "stopped before the end, nothing half-made was left behind"
        )
    if isinstance(raised, click.ClickException):
        context = getattr(raised, "ctx", None)
        path = context.command_path if context is not None else PROGRAM
        what, hint, near = " ".join(raised.format_message().split()).partition("Did you mean")
        fix = f"did you mean{near.rstrip(')')} {path} --help" if hint else f"{path} --help"
        if isinstance(raised, click.MissingParameter) and "--target" in what:
            fix = f"name a device: {PROGRAM} list targets shows them; {fix}"
        return SsmExportError(errors.WRONG_USAGE, what.rstrip(" ("), fix=fix)
    if isinstance(raised, OSError) and raised.errno in (errno.ENOSPC, errno.EDQUOT):
        return SsmExportError(
            errors.DISK_FULL,
            "no space left on the disk",
            where=str(raised.filename or ""),
            fix="free some space, or write to another disk",
        )
    if isinstance(raised, ModuleNotFoundError) and (raised.name or "") in _EXTRAS:
        package = raised.name or ""
        return missing_package(package, _EXTRAS[package], "this verb")
    if isinstance(raised, PermissionError):
        return SsmExportError(
            errors.NO_PERMISSION,
            f"{raised.strerror or raised}",
            where=str(raised.filename or ""),
            fix="choose another folder, or change the permissions of this one",
        )
    return _unexpected(raised)


def _unexpected(raised: BaseException) -> SsmExportError:
    """An error of ours: one line, and the traceback in a file."""
    text = "".join(traceback.format_exception(type(raised), raised, raised.__traceback__))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ssm-export-", suffix=".traceback.txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        where_to = f"the traceback is in {file.name}; please report it"
    except OSError:
        where_to = f"no traceback could be written; it ended with: {text.splitlines()[-1]}"
    first = (str(raised).strip() or repr(raised)).splitlines()[0]
    return SsmExportError(errors.INTERNAL, f"{type(raised).__name__}: {first}", fix=where_to)


def failure_body(error: SsmExportError) -> dict[str, Any]:
    """The members of a document that tells of a failure."""
    return {"ok": False, "error": error.as_json()}


def verb_of(group: click.Group, args: list[str]) -> str:
    """The verb of a command line that could not be parsed; ``usage`` where it names none."""
    known = group.list_commands(click.Context(group))
    return next((word for word in args if word in known), "usage")


def _write_json(verb: str, command: str, body: dict[str, Any]) -> None:
    from ssm_export.documents import document

    strict = _without_infinities(document(verb, command, body))
    print(json.dumps(strict, indent=2, allow_nan=False), flush=True)


def _without_infinities(value: Any) -> Any:
    """JSON has no infinite numbers: they become ``"inf"``, ``"-inf"`` and ``"nan"``."""
    if isinstance(value, dict):
        return {str(key): _without_infinities(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def result_stream() -> Iterator[TextIO]:
    """The true stdout, while file descriptor 1 and ``sys.stdout`` lead to stderr."""
    before = sys.stdout
    try:
        descriptor = before.fileno()
    except (OSError, ValueError, AttributeError):  # a test's stand-in
        descriptor = -1
    if descriptor != 1:
        sys.stdout = sys.stderr
        try:
            yield before
        finally:
            sys.stdout = before
        return
    before.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding=before.encoding, errors=before.errors, closefd=False) as out:
            yield out
    finally:
        before.flush()  # what Python wrote meanwhile belongs to stderr
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does, so that it too leaves nothing behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
