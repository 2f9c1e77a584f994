"""What verify found: checks, the per-layer table, as JSON and as a table for the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ssm_export.verification.context import CurvePoint
from ssm_export.verification.locate import LayerError, finite

if TYPE_CHECKING:
    from rich.console import RenderableType

PASSED: Final = "passed"
FAILED: Final = "failed"
NOT_RUN: Final = "not run"


@dataclass(frozen=True)
class CheckResult:
    """One check.

    Attributes:
        name: of the check.
        status: ``passed``, ``failed`` or ``not run``.
        worst: the number nearest to its gate, or furthest beyond it.
        tolerance: that gate.
        measure: what the number is; see :class:`~ssm_export.verification.measure.Measurement`.
        where: where it is; on failure the first layer that departs; the reason when not run.
        detail: what was run.
        seconds: wall time.
        curve: of a long run, how far it is off at some steps on the way; no gate holds it.
    """

    name: str
    status: str
    worst: float = 0.0
    tolerance: float = 0.0
    measure: str = ""
    where: str = ""
    detail: str = ""
    seconds: float = 0.0
    curve: tuple[CurvePoint, ...] = ()

    @property
    def ok(self) -> bool | None:
        """Whether it passed; None when it was not run, which is not a pass."""
        return None if self.status == NOT_RUN else self.status == PASSED

    def as_json(self) -> dict[str, Any]:
        """A JSON object. ``ok``, ``worst`` and ``tolerance`` are null when the check was not run;
        ``worst`` is null too when it is not finite. ``curve`` is there where the check has one."""
        ran = self.status != NOT_RUN
        members = {
            "name": self.name,
            "ok": self.ok,
            "status": self.status,
            "worst": finite(self.worst) if ran else None,
            "tolerance": self.tolerance if ran else None,
            "measure": self.measure,
            "where": self.where,
            "detail": self.detail,
            "seconds": round(self.seconds, 3),
        }
        points = [
            {"steps": point.steps, "error": finite(point.error), "tensor": point.tensor}
            for point in self.curve
        ]
        return members | {"curve": points} if points else members


@dataclass(frozen=True)
class VerifyReport:
    """Everything one run of verify found.

    Attributes:
        bundle: folder.
        runner: name, device and versions of the runtime, and the lowering it ran.
        against: ``parity``, or the name of the reference.
        precision: of the bundle: ``fp32``, ``fp16`` or ``bf16``.
        files: path to SHA-256 of the graphs and weights that were run.
        checks: in the order they were run.
        layers: the per-layer table; empty unless asked for with ``bisect``.
        outputs: the worst of each measure of the logits and of every state against the truth, as
            far as those checks were run.
        seconds: wall time.
        measured: check and measure to the worst value seen, such as ``logits nmse``.
    """

    bundle: str
    runner: str
    device: str
    lowering: str
    versions: dict[str, str]
    against: str
    precision: str
    state_dtype: str
    files: dict[str, str]
    checks: tuple[CheckResult, ...]
    layers: tuple[LayerError, ...] = ()
    outputs: tuple[LayerError, ...] = ()
    seconds: float = 0.0
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No check failed, and at least one was run."""
        statuses = [check.status for check in self.checks]
        return FAILED not in statuses and PASSED in statuses

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == FAILED)

    def as_json(self) -> dict[str, Any]:
        """The members of the ``ssm-export/verify@1`` document."""
        return {
            "ok": self.ok,
            "bundle": self.bundle,
            "runner": self.runner,
            "device": self.device,
            "lowering": self.lowering,
            "runtime": self.versions,
            "against": self.against,
            "precision": self.precision,
            "state_dtype": self.state_dtype,
            "files": self.files,
            "checks": [check.as_json() for check in self.checks],
            "layers": [line.as_json() for line in self.layers],
            "outputs": [line.as_json() for line in self.outputs],
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> RenderableType:
        """The report for a terminal."""
        from rich.console import Group

        from ssm_export.documents import tables

        marks = {PASSED: "[green]passed[/]", FAILED: "[red]FAILED[/]", NOT_RUN: "[dim]not run[/]"}
        rows = []
        for check in self.checks:
            ran = check.status != NOT_RUN
            rows.append(
                (
                    check.name,
                    marks[check.status],
                    f"{check.worst:.2e}" if ran else "–",
                    f"{check.tolerance:.2e}" if ran else "–",
                    check.measure,
                    tables.plain("; ".join(part for part in (check.where, check.detail) if part)),
                )
            )
        title = (
            f"{self.runner} ({self.device}), {self.lowering} graphs, {self.precision}, "
            f"against {self.against}"
        )
        columns = ("check", "", "worst>", "gate>", "measure", "where")
        parts: list[RenderableType] = [tables.table(title, columns, rows)]
        if self.layers:
            lines = [
                (
                    line.tensor,
                    "[green]ok[/]" if line.ok else "[red]departs[/]",
                    f"{line.error:.2e}",
                    f"{line.tolerance:.2e}",
                    line.measure,
                )
                for line in self.layers
            ]
            heads = ("tensor", "", "error>", "gate>", "measure")
            parts.append(tables.table(f"Error per layer: {self.layers[0].run}", heads, lines))
        return Group(*parts)
