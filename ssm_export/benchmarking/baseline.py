"""An earlier report of bench to compare with: read, checked before anything is measured, compared.

Two reports can be compared when machine, runner, weights and settings are the same; versions may
differ, since they are what one wants to compare, and are named.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ssm_export import errors
from ssm_export.benchmarking.comparison import Comparison, change_of, noise_of
from ssm_export.errors import SsmExportError

Key = tuple[str, int, int, int, bool | None]

_MACHINE: Final = ("cpu", "cores", "gpu", "jetson", "power_mode")
_WITH_VERSION: Final = {"gpu": " (", "jetson": ", L4T"}
"""Facts that end in versions of driver or system, and what their name ends before."""
_RUNNER: Final = ("runner", "device", "lowering")
_SETTINGS: Final = ("threads", "warmup", "repetitions")


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
        changes = tuple(change_of(before[row.key], row) for row in rows if row.key in before)
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
    except (OSError, ValueError, RecursionError) as error:
        raise bad(f"not JSON that can be read: {error}") from error
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not isinstance(document.get("machine"), dict):
        raise bad("not a report of bench: it has no rows, or no machine")
    if not isinstance(document.get("runtime") or {}, dict):
        raise bad("not a report of bench: its runtime is no list of versions")
    if not rows or not all(_usable(row) for row in rows):
        raise bad(
            "its rows lack what a comparison needs, or have something else there "
            "(an older release wrote fewer members)"
        )
    repeated = document.get("repeatability")
    if not isinstance(repeated, dict) or not _finite(repeated.get("p50_spread")):
        raise bad("it was measured in too few blocks to know its noise, or does not say it")
    return Baseline(file, document)


def _usable(row: Any) -> bool:
    """Whether a row has every member that is compared, of its type, and finite."""
    if not isinstance(row, dict):
        return False
    times = [row.get(name) for name in ("p50_ms", "p50_low_ms", "p50_high_ms")]
    counts = [row.get(name) for name in ("tokens", "batch", "depth")]
    return (
        isinstance(row.get("phase"), str)
        and all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
        and "cuda_graph" in row
        and row["cuda_graph"] in (None, True, False)
        and all(_finite(value) for value in times)
        and row["p50_ms"] > 0
        and 0 <= noise_of(row) < math.inf
    )


def _finite(value: Any) -> bool:
    """Whether it is a number that a float can hold: JSON has larger ones, and Infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


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
