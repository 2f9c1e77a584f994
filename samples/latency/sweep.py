"""Three sweeps of a bundle: over prompt lengths, over depths, over batch sizes.

Each is one ``bench``; its report is written as Markdown, CSV and JSON, and the rows of all three as
one table for plots. Given the folder of an earlier run, every sweep is compared with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssm_export import SsmExportError, bench
from ssm_export.benchmarking import BenchReport
from ssm_export.benchmarking.comparison import cannot_tell, slower_error
from ssm_export.documents.tables import render
from ssm_export.progress import terminal_progress

SWEEPS: dict[str, dict[str, Any]] = {
    "prompt": {"prefill": (16, 64, 256, 1024), "decode": 16},
    "depth": {"prefill": (16,), "depth": (0, 256, 1024, 4096)},
    "batch": {"prefill": (64,), "batch": (1, 2, 4, 8), "decode": 16},
}
"""The options of each sweep."""
ALONG = {"prompt": "tokens", "depth": "depth", "batch": "batch"}
"""The column that a sweep goes along."""
COLUMNS = ("p50_ms", "p50_low_ms", "p50_high_ms", "p90_ms", "p99_ms", "max_ms", "tokens_per_s")


def swept(name: str, bundle: str, folder: Path, options: argparse.Namespace) -> BenchReport:
    """Run one sweep and write its report in every format."""
    earlier = options.baseline / f"{name}.json" if options.baseline else None
    with terminal_progress() as progress:
        return bench(
            bundle,
            **SWEEPS[name],
            runner=options.runner,
            repetitions=options.repetitions,
            outputs=[folder / f"{name}.{suffix}" for suffix in ("md", "csv", "json")],
            baseline=earlier,
            progress=progress,
        )


def plot_table(reports: dict[str, BenchReport]) -> str:
    """The rows of every sweep, one series after the other, for gnuplot or a spreadsheet."""
    lines = ["\t".join(("sweep", "phase", "x", *COLUMNS))]
    for name, report in reports.items():
        phases = ("decode",) if name == "depth" else ("prefill", "first token", "decode")
        for phase in phases:
            for row in report.rows:
                if row.phase == phase and (name != "prompt" or phase != "decode"):
                    values = [f"{getattr(row, column):.6g}" for column in COLUMNS]
                    lines.append("\t".join((name, phase, str(getattr(row, ALONG[name])), *values)))
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Run the sweeps; 1 when one of them is slower than the baseline or that is not ruled out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/latency"))
    parser.add_argument("--baseline", type=Path, help="the folder of an earlier run")
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--runner", default="onnxruntime")
    parser.add_argument("--repetitions", type=int)
    options = parser.parse_args(words)
    options.output.mkdir(parents=True, exist_ok=True)
    reports: dict[str, BenchReport] = {}
    try:
        for name in options.sweeps:
            reports[name] = swept(name, options.bundle, options.output, options)
            print(render(reports[name].table(), 110))
    except SsmExportError as error:
        print(error, file=sys.stderr)
        return error.code.exit_status
    plot = options.output / "plot.tsv"
    plot.write_text(plot_table(reports), encoding="utf-8")
    print(f"reports and {plot.name} are in {options.output}")
    slower = [r.comparison for r in reports.values() if not r.ok and r.comparison is not None]
    for line in (line for r in reports.values() for line in cannot_tell(r.comparison)):
        print(line, file=sys.stderr)
    for comparison in slower:
        print(slower_error(comparison, options.bundle), file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
