"""A bench against an earlier one: row by row, and no row is called slower that the noise explains.

Nor is a row called the same where the noise would hide a change that matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError

LEAST_CHANGE: Final = 0.05
"""Changes of the p50 below 5 % are never called slower or faster: a p50 is held to repeat within
5 % on an idle machine, no closer, since caches, alignment and the order of allocations move it
from one process to the next."""
MOST_NOISE: Final = 0.10
"""With more noise than 10 % of both runs together, a change inside it is not called the same: one
that matters would look no different. A row that came out slower by more than that fails."""

SLOWER: Final = "slower"
FASTER: Final = "faster"
SAME: Final = "same"
CANNOT_TELL: Final = "cannot tell"


@dataclass(frozen=True)
class Change:
    """One row against the baseline's.

    Attributes:
        before_ms, now_ms: the two p50.
        change: ``now_ms / before_ms − 1``.
        noise: the change that is not called one: the relative half-widths of both intervals of
            the p50 added up, and 5 % at least.
        verdict: ``slower``, ``faster``, ``same``, or ``cannot tell`` where the change lies inside
            a noise over 10 %.
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
        return tuple(change for change in self.changes if change.verdict == SLOWER)

    @property
    def cannot_tell(self) -> tuple[Change, ...]:
        """The rows whose noise would hide a change that matters."""
        return tuple(change for change in self.changes if change.verdict == CANNOT_TELL)

    @property
    def not_ruled_out(self) -> tuple[Change, ...]:
        """Those of them that came out slower by more than 10 %: they count as slower."""
        return tuple(change for change in self.cannot_tell if change.change > MOST_NOISE)

    @property
    def ok(self) -> bool:
        """No row is slower, and of none it could not be ruled out."""
        return not self.slower and not self.not_ruled_out

    def as_json(self) -> dict[str, Any]:
        """The ``comparison`` member of a report."""
        counts = {name: len(getattr(self, name)) for name in ("slower", "cannot_tell")}
        return {**asdict(self), **counts, "not_ruled_out": len(self.not_ruled_out)}


_AGAIN: Final = (
    "measure both anew on an idle machine and with more repetitions: --repetitions 100 or more, "
    "the same for the baseline"
)


def slower_error(comparison: Comparison, bundle: str) -> SsmExportError:
    """The error for rows that are slower, or may be so in too noisy a run."""
    slower, open_ones = comparison.slower, comparison.not_ruled_out
    worst = max(slower or open_ones, key=lambda change: change.change)
    said = []
    if slower:
        said.append(
            f"{len(slower)} of {len(comparison.changes)} rows are slower than the baseline by more "
            "than the noise"
        )
    if open_ones:
        said.append(
            f"{len(open_ones)} of {len(comparison.changes)} rows came out slower by more than "
            f"{MOST_NOISE:.0%} inside a greater noise, so a regression could not be ruled out"
        )
    again = "run it again on an idle machine; if it stays slower, look at the versions that differ"
    return SsmExportError(
        errors.SLOWER,
        f"{'; '.join(said)}; the worst is {row_name(worst)}: {worst.change:+.1%} "
        f"(noise {worst.noise:.1%})",
        where=bundle,
        why="; ".join(comparison.versions),
        fix=again if slower else _AGAIN,
    )


def cannot_tell(comparison: Comparison | None) -> tuple[str, ...]:
    """What to say of the rows that the noise leaves open, and what to do; nothing for none."""
    if comparison is None or not comparison.cannot_tell:
        return ()
    found = comparison.cannot_tell
    worst = max(found, key=lambda change: change.noise)
    said = (
        f"CANNOT TELL whether {len(found)} of {len(comparison.changes)} rows changed: the noise of "
        f"both runs together is up to {worst.noise:.1%} ({row_name(worst)}). To know, {_AGAIN}."
    )
    return (said,)


def row_name(row: Any) -> str:
    """A row in a few words: ``decode 64 tokens, batch 1, at depth 1024``."""
    parts = [f"{row.phase} {row.tokens} tokens", f"batch {row.batch}"]
    if row.depth:
        parts.append(f"at depth {row.depth}")
    if row.cuda_graph is not None:
        parts.append("CUDA graph" if row.cuda_graph else "no CUDA graph")
    return ", ".join(parts)


def change_of(before: Mapping[str, Any], row: Any) -> Change:
    """A row of :class:`ssm_export.benchmarking.report.Row` against one of an earlier document."""
    change = row.p50_ms / before["p50_ms"] - 1
    noise = max(LEAST_CHANGE, noise_of(before) + noise_of(asdict(row)))
    within = CANNOT_TELL if noise > MOST_NOISE else SAME
    verdict = SLOWER if change > noise else FASTER if change < -noise else within
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


def noise_of(row: Mapping[str, Any]) -> float:
    """Half the width of the interval of the p50, as a share of it."""
    width: float = row["p50_high_ms"] - row["p50_low_ms"]
    return width / 2 / float(row["p50_ms"])
