"""What bench measured: its rows, and everything that they depend on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ssm_export.benchmarking.comparison import Comparison
from ssm_export.benchmarking.timing import block_spread, median_interval, percentiles, quantiles
from ssm_export.benchmarking.work import DECODE, FIRST_TOKEN, PREFILL, Measured

if TYPE_CHECKING:
    from rich.console import RenderableType

STEADY: Final = 0.05
"""Most that the p50 of blocks may differ by for a run that another will repeat."""
BLOCKS: Final = 5
"""Blocks that a run has where it repeats often enough, and needs for its noise to be known."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        phase: ``prefill``, ``first token`` (a prefill and the first step after it) or ``decode``.
        tokens: of the prompt of one row, or how many were decoded in one repetition.
        batch: rows.
        runner: name of the runtime.
        p50_ms, p90_ms, p99_ms, max_ms: of one prefill, or of one decoded token of all rows.
        jitter_ms: standard deviation of the times.
        tokens_per_s: of all rows together, at the median; of a first token, those of the prompt
            and it.
        gb_per_s: weights and states that one decoded token moves, over its median time: to hold
            against the bandwidth of the memory. None for prefill, which arithmetic bounds.
        samples: times that the percentiles are of.
        pieces: calls that a prefill took; more than one where an engine has a longest chunk.
        depth: tokens that were in the state when decoding began.
        cuda_graph: whether the steps ran in a CUDA graph; None where the runner has none, and for
            prefill.
        quantiles_ms: the times at probabilities 0, 0.025 … 1.
        p50_low_ms, p50_high_ms: the 95 % confidence interval of this run's p50.
        p50_spread: largest less smallest p50 of the blocks, as a share of the p50.
        energy_mj_per_token: of the whole device, idle power included, while the row ran alone;
            None where its power is not sampled, or too seldom for this row.
        ceiling_share: ``tokens_per_s`` over the predicted ceiling; None without a prediction.
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
    max_ms: float = 0.0
    jitter_ms: float = 0.0
    depth: int = 0
    cuda_graph: bool | None = None
    quantiles_ms: tuple[float, ...] = ()
    p50_low_ms: float = 0.0
    p50_high_ms: float = 0.0
    p50_spread: float = 0.0
    energy_mj_per_token: float | None = None
    ceiling_share: float | None = None

    @property
    def key(self) -> tuple[str, int, int, int, bool | None]:
        """What was measured: the same in two reports that can be compared."""
        return self.phase, self.tokens, self.batch, self.depth, self.cuda_graph


def make_row(
    measured: Measured,
    runner: str,
    moved: dict[str, int],
    energy_mj_per_token: float | None = None,
) -> Row:
    """The row of some times.

    Args:
        measured: the times.
        runner: name of the runtime.
        moved: bytes that a token moves: ``weights`` and ``states_per_row``.
        energy_mj_per_token: of its own pass.
    """
    times = measured.times_ms
    p50, p90, p99 = percentiles(times)
    low, high = median_interval(measured.blocks)
    decoded = measured.phase == DECODE
    per_call = {PREFILL: measured.tokens, FIRST_TOKEN: measured.tokens + 1, DECODE: 1}
    moved_bytes = moved["weights"] + measured.batch * moved["states_per_row"]
    mean = sum(times) / len(times)
    return Row(
        phase=measured.phase,
        tokens=measured.tokens,
        batch=measured.batch,
        runner=runner,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        tokens_per_s=measured.batch * per_call[measured.phase] / p50 * 1e3,
        gb_per_s=moved_bytes / p50 / 1e6 if decoded else None,
        samples=len(times),
        pieces=measured.pieces,
        max_ms=max(times),
        jitter_ms=(sum((value - mean) ** 2 for value in times) / len(times)) ** 0.5,
        depth=measured.depth,
        cuda_graph=measured.cuda_graph,
        quantiles_ms=quantiles(times),
        p50_low_ms=low,
        p50_high_ms=high,
        p50_spread=block_spread(measured.blocks),
        energy_mj_per_token=energy_mj_per_token,
    )


@dataclass(frozen=True)
class BenchReport:
    """Speed, and everything that it depends on.

    Attributes:
        bundle: folder.
        bytes_per_token: of weights and, for each row of the batch, of states.
        peak_memory_bytes: of the process; None where the system does not say.
        peak_memory_since: what the peak counts from.
        warmup: calls of each kind before the clock starts; one in each block after the first.
        repetitions: prefills, and decodes of ``tokens``, that were timed at least.
        blocks: rounds over all rows, apart in time, that the repetitions were dealt to.
        threads: given to the runtime; None for its own choice.
        verified: the checks that passed before anything was timed.
        weights_sha256: of the bundle's weights.
        machine: facts of the machine.
        versions: of the runtime and the tools.
        telemetry: power, clocks and temperatures while it ran, the passes for the energy among
            it, see :mod:`ssm_export.telemetry`.
        prediction: of the target, for the first batch size; None without a target.
        target: its name.
        comparison: with a baseline.
        notes: what a reader should know beside the rows.
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
    blocks: int = 1
    weights_sha256: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    telemetry: dict[str, Any] = field(default_factory=dict)
    prediction: dict[str, Any] | None = None
    target: str | None = None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Not slower than the baseline, and not so noisy that it may well be. A report exists only
        for a bundle that passed verify."""
        return self.comparison is None or self.comparison.ok

    @property
    def repeatability(self) -> dict[str, Any]:
        """The worst ``p50_spread`` of the rows, None with too few blocks, and whether it is less
        than 5 %."""
        if self.blocks < BLOCKS:
            return {"p50_spread": None, "steady": False}
        worst = max((row.p50_spread for row in self.rows), default=0.0)
        return {"p50_spread": worst, "steady": worst <= STEADY}

    def as_json(self) -> dict[str, Any]:
        """The members of the ``ssm-export/bench@1`` document."""
        document = asdict(self)
        document["runtime"] = document.pop("versions")
        document["rows"] = [
            {**asdict(row), "quantiles_ms": list(row.quantiles_ms)} for row in self.rows
        ]
        document["verified"] = list(self.verified)
        document["notes"] = list(self.notes)
        document["comparison"] = None if self.comparison is None else self.comparison.as_json()
        document["repeatability"] = self.repeatability
        return {"ok": self.ok, **document}

    def table(self) -> RenderableType:
        """The report for a terminal."""
        from ssm_export.benchmarking.screen import report_table

        return report_table(self)
