"""What bench measured, as JSON and as a table with bars."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        phase: ``prefill`` or ``decode``.
        tokens: of the prompt of one row, or how many were decoded in one repetition.
        batch: rows.
        runner: name of the runtime.
        p50_ms, p90_ms, p99_ms: of one prefill, or of one decoded token of all rows.
        tokens_per_s: of all rows together, at the median.
        gb_per_s: weights and states that one decoded token moves, over its median time: to hold
            against the bandwidth of the memory. None for prefill, which arithmetic bounds.
        samples: times that the percentiles are of.
        pieces: calls that a prefill took; more than one where an engine has a longest chunk.
    """

    phase: str
    tokens: int
    batch: int
    runner: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    tokens_per_s: float
    gb_per_s: float | None
    samples: int
    pieces: int = 1


@dataclass(frozen=True)
class BenchReport:
    """Speed, and everything that it depends on.

    Attributes:
        bundle: folder.
        bytes_per_token: of weights and, for each row of the batch, of states.
        peak_memory_bytes: of the process; None where the system does not say.
        peak_memory_since: what the peak counts from.
        warmup: calls of each kind before the clock starts.
        repetitions: prefills, and decodes of ``tokens``, that were timed.
        threads: given to the runtime; None for its own choice.
        verified: the checks that passed before anything was timed.
        machine: facts of the machine.
        versions: of the runtime and the tools.
    """

    bundle: str
    runner: str
    device: str
    lowering: str
    precision: str
    state_dtype: str
    rows: tuple[Row, ...]
    bytes_per_token: dict[str, int]
    peak_memory_bytes: int | None
    peak_memory_since: str
    warmup: int
    repetitions: int
    threads: int | None
    verified: tuple[str, ...]
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def ok(self) -> bool:
        """A report exists only for a bundle that passed."""
        return True

    def as_json(self) -> dict[str, Any]:
        """The members of the ``ssm-export/bench@1`` document."""
        document = asdict(self)
        document["runtime"] = document.pop("versions")
        document["rows"] = [asdict(row) for row in self.rows]
        document["verified"] = list(self.verified)
        return {"ok": self.ok, **document}

    def table(self) -> RenderableType:
        """The report for a terminal."""
        from rich.console import Group
        from rich.text import Text

        from ssm_export.documents import tables

        slowest = {phase: self._slowest(phase) for phase in ("prefill", "decode")}
        lines = [
            (
                row.phase,
                f"{row.tokens}",
                f"{row.batch}",
                f"{row.p50_ms:.2f}",
                f"{row.p90_ms:.2f}",
                f"{row.p99_ms:.2f}",
                f"{row.tokens_per_s:,.0f}",
                f"{row.gb_per_s:.1f}" if row.gb_per_s is not None else "–",
                tables.bar(row.p50_ms, slowest[row.phase], 16),
            )
            for row in self.rows
        ]
        title = f"{self.runner} ({self.device}), {self.lowering} graphs, {self.precision}"
        heads = (
            "phase",
            "tokens>",
            "batch>",
            "p50 ms>",
            "p90>",
            "p99>",
            "tokens/s>",
            "GB/s>",
            "p50",
        )
        peak = self.peak_memory_bytes
        facts = [
            f"peak memory {tables.size(peak)} since {self.peak_memory_since}" if peak else "",
            f"{self.warmup} warm-up calls, {self.repetitions} repetitions",
            f"{self.threads} threads" if self.threads else "",
            str(self.machine.get("cpu", "")),
        ]
        note = "; ".join(fact for fact in facts if fact)
        return Group(tables.table(title, heads, lines), Text(note, style="dim"))

    def _slowest(self, phase: str) -> float:
        return max((row.p50_ms for row in self.rows if row.phase == phase), default=0.0)
