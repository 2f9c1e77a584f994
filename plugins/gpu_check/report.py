"""What is printed and written: a line per operator that was checked, a line per goal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ssm_export_plugins.gpu_check.rows import Goal, Row

if TYPE_CHECKING:
    from ssm_export_plugins.gpu_check.correctness import Finding
    from ssm_export_plugins.gpu_check.measuring import Measured

NO_GPU: Final = "no GPU at hand"

_MEASURED: Final = (
    "time_us",
    "plan",
    "best_plan",
    "best_plan_us",
    "bytes",
    "gb_per_s",
    "copy_share_percent",
    "copy_gb_per_s",
    "floor_us",
    "floor_bound",
    "mamba_ssm_us",
    "mamba_ssm_kernel",
    "torch_loop_us",
    "torch_chunked_us",
)
_UNITS: Final = {"time": "µs", "mamba_ssm": "x mamba-ssm", "width": "x width 64", "copy": "% copy"}
_COLUMNS: Final = (
    ("row", "name"),
    ("state", "state"),
    ("µs", "time_us"),
    ("GB/s", "gb_per_s"),
    ("% copy", "copy_share_percent"),
    ("floor µs", "floor_us"),
    ("by", "floor_bound"),
    ("mamba-ssm", "mamba_ssm_us"),
    ("torch loop", "torch_loop_us"),
    ("chunked", "torch_chunked_us"),
    ("goal", "goal"),
    ("must", "must"),
    ("stretch", "stretch"),
    ("got", "value"),
    ("verdict", "verdict"),
)


def document(
    machine: dict[str, Any], findings: Sequence[Finding], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything as it is written: the machine, the command, correctness, and the rows."""
    return {
        "machine": machine,
        "command": "",
        "correctness": [
            {"op": f.op, "runs": f.runs, "red": list(f.problems), "notes": list(f.notes)}
            for f in findings
        ],
        "rows": rows,
    }


def unmeasured(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of a machine without a GPU."""
    return [line for row in rows for line in _lines(row, {}, [NO_GPU], {})]


def judged(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A line for each goal of each row, with what was reached."""
    per_element = {
        found.row.name: found.figures["time_us"] / found.row.elements
        for found in measured
        if found.figures
    }
    lines: list[dict[str, Any]] = []
    for found in measured:
        notes = list(found.notes) + ([found.problem] if found.problem else [])
        lines += _lines(found.row, dict(found.figures), notes, per_element)
    return lines


def _lines(
    row: Row, figures: dict[str, Any], notes: list[str], per_element: dict[str, float]
) -> list[dict[str, Any]]:
    base = {
        "name": row.name,
        "op": row.op,
        "sizes": dict(row.sizes),
        "io": "float16",
        "state": row.state,
        **{name: figures.get(name) for name in _MEASURED},
    }
    lines = []
    for goal in row.goals or (None,):
        value = None if goal is None else figure(goal, row, figures, per_element)
        lines.append(
            {
                **base,
                "goal": goal and _UNITS[goal.measure],
                "must": goal and goal.must,
                "stretch": goal and goal.stretch,
                "value": value,
                "verdict": goal and goal.verdict(value),
                "note": "; ".join(notes),
            }
        )
    return lines


def figure(
    goal: Goal, row: Row, figures: dict[str, Any], per_element: dict[str, float]
) -> float | None:
    """What a row reached in the unit of a goal; None where it was not measured."""
    time = figures.get("time_us")
    if time is None:
        return None
    if goal.measure == "time":
        return float(time)
    if goal.measure == "copy":
        return float(figures["copy_share_percent"])
    if goal.measure == "mamba_ssm":
        other = figures.get("mamba_ssm_us")
        return None if other is None else other / time
    other = per_element.get(row.against or "")
    return None if other is None else time / row.elements / other


def heading(machine: dict[str, Any]) -> str:
    """The machine in a few lines."""
    smi = machine["nvidia_smi"]
    device = machine["device"] or "no GPU, kernels are interpreted"
    lines = [
        f"{device}, torch {machine['torch']}, triton {machine['triton']}, {machine['date']}",
        *(f"{name}: {value}" for name, value in smi.items() if name != "name"),
    ]
    return "\n".join(lines) + "\n"


def finding_line(finding: Finding) -> str:
    """One operator's correctness."""
    state = f"{len(finding.problems)} RED" if finding.problems else "right"
    line = f"{finding.op:22} {finding.runs:6} runs  {state}"
    return line + "".join(f"\n    {note}" for note in finding.notes)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The rows in aligned text, the notes below them."""
    cells = [[title for title, _ in _COLUMNS]]
    cells += [[_cell(line[key]) for _, key in _COLUMNS] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    noted = [line for line in lines if line["note"] not in ("", NO_GPU)]
    notes = dict.fromkeys(f"{line['name']}: {line['note']}" for line in noted)
    return "\n".join([*text, *notes])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
    return str(value)
