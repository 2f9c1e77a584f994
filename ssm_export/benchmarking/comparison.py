"""A bench against an earlier one: row by row, and no row is called slower that the noise explains.

Two reports can be compared when machine, runner, weights and settings are the same; versions may
differ, since they are what one wants to compare, and are named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError

LEAST_CHANGE: Final = 0.03
"""Changes of the p50 below 3 % are never called slower or faster: caches, alignment and the order
of allocations move a median by that much between two processes on an idle machine."""

Key = tuple[str, int, int, int, bool | None]

_MACHINE: Final = ("cpu", "cores", "gpu", "jetson", "power_mode")
_WITH_VERSION: Final = {"gpu": " (", "jetson": ", L4T"}
"""Facts that end in versions of driver or system, and what their name ends before."""
_RUNNER: Final = ("runner", "device", "lowering")
_SETTINGS: Final = ("threads", "warmup", "repetitions")


@dataclass(frozen=True)
class Change:
    """One row against the baseline's.

    Attributes:
        before_ms, now_ms: the two p50.
        change: ``now_ms / before_ms − 1``.
        noise: the change that is not called one: the relative half-widths of both intervals of
            the p50 added up, and 3 % at least.
        verdict: ``slower``, ``faster`` or ``same``.
    """

    phase: str
    tokens: int
    batch: int
    depth: int
    cuda_graph: bool | None
    before_ms: float
    now_ms: float
    change: float
    noise: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """A report against a baseline.

    Attributes:
        baseline: its file.
        created: when it was measured.
        changes: of the rows that both have.
        versions: what differs in versions, in words.
        not_compared: rows that only one of the two has.
    """

    baseline: str
    created: str
    changes: tuple[Change, ...]
    versions: tuple[str, ...] = ()
    not_compared: int = 0

    @property
    def slower(self) -> tuple[Change, ...]:
        """The rows that are slower beyond the noise."""
        return tuple(change for change in self.changes if change.verdict == "slower")

    def as_json(self) -> dict[str, Any]:
        """The ``comparison`` member of a report."""
        return {**asdict(self), "slower": len(self.slower)}


@dataclass(frozen=True)
class Baseline:
    """An earlier report, read and found whole.

    Attributes:
        path: its file.
        document: its members.
    """

    path: Path
    document: Mapping[str, Any]

    def keys(self) -> set[Key]:
        """What its rows measured."""
        return {_key(row) for row in self.document["rows"]}

    def check(self, present: Mapping[str, Any], keys: Sequence[Key]) -> None:
        """Refuse to be compared with something else than was measured.

        Args:
            present: members of the report to come: ``machine``, ``runner``, ``device``,
                ``lowering``, ``weights_sha256``, ``threads``, ``warmup``, ``repetitions``.
            keys: of the rows to come.

        Raises:
            SsmExportError: ``BAD_BASELINE`` with every difference.
        """
        found = self.document
        before, now = _identity(found["machine"]), _identity(present["machine"])
        differences = [
            _difference(f"machine: {name}", before[name], now[name]) for name in _MACHINE
        ]
        differences += [_difference(name, found.get(name), present[name]) for name in _RUNNER]
        differences += [
            _difference(f"--{name}", found.get(name), present[name]) for name in _SETTINGS
        ]
        if found.get("weights_sha256") != present["weights_sha256"]:
            differences.append("the weights of the bundle are others")
        said = [text for text in differences if text]
        if not said and not self.keys() & set(keys):
            said = ["no row of it measured what is to be measured now"]
        if said:
            raise SsmExportError(
                errors.BAD_BASELINE,
                "the baseline measured something else: " + "; ".join(said),
                where=str(self.path),
                fix="measure with the baseline's settings on its machine, or make another "
                "baseline: ssm-export bench BUNDLE --output baseline.json",
            )

    def compare(
        self, rows: Sequence[Any], versions: Mapping[str, str], machine: Mapping[str, Any]
    ) -> Comparison:
        """Compare rows with the baseline's.

        Args:
            rows: of :class:`ssm_export.benchmarking.report.Row`.
            versions: of the runtime and the tools.
            machine: facts of the machine, which name the system's version and the driver's.
        """
        before = {_key(row): row for row in self.document["rows"]}
        changes = tuple(_change(before[row.key], row) for row in rows if row.key in before)
        common = {row.key for row in rows} & before.keys()
        found = self.document.get("runtime") or {}
        told = [
            _difference(name, found.get(name), versions.get(name))
            for name in sorted({*found, *versions})
        ]
        told += [
            _difference(name, self.document["machine"].get(name), machine.get(name))
            for name in ("os", *_WITH_VERSION)
        ]
        return Comparison(
            baseline=str(self.path),
            created=str(self.document.get("created", "")),
            changes=changes,
            versions=tuple(text for text in told if text),
            not_compared=len(before) + len(rows) - 2 * len(common),
        )


def read_baseline(path: str | os.PathLike[str]) -> Baseline:
    """Read an earlier report: of ``--output FILE.json``, of ``--json``, or of a bundle's reports.

    Raises:
        SsmExportError: ``NO_SUCH_PATH``, or ``BAD_BASELINE`` where it cannot be used.
    """
    file = Path(path)
    again = "make another: ssm-export bench BUNDLE --output baseline.json"

    def bad(what: str) -> SsmExportError:
        return SsmExportError(errors.BAD_BASELINE, what, where=str(file), fix=again)

    if not file.is_file():
        raise SsmExportError(
            errors.NO_SUCH_PATH, "there is no such file", where=f"--baseline {file}", fix=again
        )
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise bad(f"not JSON that can be read: {error}") from error
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not isinstance(document.get("machine"), dict):
        raise bad("not a report of bench: it has no rows, or no machine")
    try:
        usable = all(_key(row) and _noise(row) >= 0 and row["p50_ms"] > 0 for row in rows)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        usable = False
    if not rows or not usable:
        raise bad("its rows lack what a comparison needs (an older release wrote fewer members)")
    if not document.get("repeatability") or document["repeatability"]["p50_spread"] is None:
        raise bad("it was measured in too few blocks to know its noise")
    return Baseline(file, document)


def slower_error(comparison: Comparison, bundle: str) -> SsmExportError:
    """The error for rows that are slower."""
    worst = max(comparison.slower, key=lambda change: change.change)
    return SsmExportError(
        errors.SLOWER,
        f"{len(comparison.slower)} of {len(comparison.changes)} rows are slower than the baseline "
        f"by more than the noise, the worst is {row_name(worst)}: {worst.change:+.1%} "
        f"(noise {worst.noise:.1%})",
        where=bundle,
        why="; ".join(comparison.versions),
        fix="run it again on an idle machine; if it stays slower, look at the versions that differ",
    )


def row_name(row: Any) -> str:
    """A row in a few words: ``decode 64 tokens, batch 1, at depth 1024``."""
    parts = [f"{row.phase} {row.tokens} tokens", f"batch {row.batch}"]
    if row.depth:
        parts.append(f"at depth {row.depth}")
    if row.cuda_graph is not None:
        parts.append("CUDA graph" if row.cuda_graph else "no CUDA graph")
    return ", ".join(parts)


def _change(before: Mapping[str, Any], row: Any) -> Change:
    change = row.p50_ms / before["p50_ms"] - 1
    noise = max(LEAST_CHANGE, _noise(before) + _noise(asdict(row)))
    verdict = "slower" if change > noise else "faster" if change < -noise else "same"
    return Change(
        phase=row.phase,
        tokens=row.tokens,
        batch=row.batch,
        depth=row.depth,
        cuda_graph=row.cuda_graph,
        before_ms=before["p50_ms"],
        now_ms=row.p50_ms,
        change=change,
        noise=noise,
        verdict=verdict,
    )


def _noise(row: Mapping[str, Any]) -> float:
    """Half the width of the interval of the p50, as a share of it."""
    width: float = row["p50_high_ms"] - row["p50_low_ms"]
    return width / 2 / float(row["p50_ms"])


def _key(row: Mapping[str, Any]) -> Key:
    return row["phase"], row["tokens"], row["batch"], row["depth"], row["cuda_graph"]


def _identity(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a machine the same one, whatever versions it runs."""
    found = {name: machine.get(name) for name in _MACHINE}
    for name, end in _WITH_VERSION.items():
        found[name] = str(found[name] or "").partition(end)[0]
    return found


def _difference(name: str, before: Any, now: Any) -> str:
    if before == now:
        return ""
    shown = ["not set" if value in (None, "") else str(value) for value in (before, now)]
    return f"{name} was {shown[0]}, is {shown[1]}"
