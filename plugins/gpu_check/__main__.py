"""Command line of the GPU check; the options are described by ``--help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

DONE, RED, NO_GPU = 0, 1, 3


def main(arguments: list[str] | None = None) -> int:
    """Check, time, print and write; gives the exit status.

    0: everything is right (goals may be missed); 1: something is not; 2: wrong usage; 3: no GPU,
    or no torch.
    """
    options = _parse(arguments)
    missing = [name for name in ("numpy", "torch", "triton") if find_spec(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}; nothing was checked", file=sys.stderr)
        return NO_GPU
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    from ssm_export.resources import load_plugins

    load_plugins()
    from ssm_export_plugins.gpu_check import correctness, machine, report, rows

    known = correctness.checked_operators()
    if options.op and options.op not in known:
        print(f"no kernels are for {options.op!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [row for row in rows.ROWS if options.op in (None, row.op)]
    if options.rows_only:
        lines = report.unmeasured(chosen)
        print(report.table(lines))
        _write(options, report.document(machine.facts(), [], lines))
        return DONE
    if not options.interpret and not machine.has_gpu():
        print("no GPU at hand: torch finds none, so nothing was checked and nothing was timed")
        return NO_GPU
    if options.interpret:
        from ssm_export_plugins.gpu_check import interpreting

        interpreting.mend_bfloat16()
    chip = machine.INTERPRETED if options.interpret else machine.chip()
    device = "cpu" if options.interpret else "cuda"
    print(report.heading(machine.facts()))
    findings = []
    for name in [options.op] if options.op else known:
        effort = correctness.effort_of(options.quick, options.interpret)
        findings.append(correctness.check_operator(name, chip, device, effort))
        print(report.finding_line(findings[-1]), flush=True)
    red = [problem for finding in findings for problem in finding.problems]
    if red:
        print(f"\n{len(red)} red; nothing is timed\n" + "\n".join(red))
        _write(options, report.document(machine.facts(), findings, []))
        return RED
    timed: list[dict[str, Any]] = []
    if not options.interpret:
        from ssm_export_plugins.gpu_check import measuring

        measured = measuring.measure(chosen, chip, options.mamba_ssm)
        timed = report.judged(measured)
        print("\n" + report.table(timed))
        wrong = [row for row in measured if row.problem]
        if wrong:
            print("\n" + "\n".join(f"{row.row.name}: {row.problem}" for row in wrong))
            _write(options, report.document(machine.facts(), findings, timed))
            return RED
    _write(options, report.document(machine.facts(), findings, timed))
    return DONE


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description="Are the kernels right on this GPU, and how fast are they?"
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases of correctness")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--op", metavar="NAME", help="only this operator, such as SsdScan")
    parser.add_argument(
        "--mamba-ssm",
        type=Path,
        metavar="PATH",
        help="a source tree of mamba-ssm, where the package is not installed",
    )
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="correctness on the CPU under Triton's interpreter, small sizes, no timing",
    )
    parser.add_argument(
        "--rows-only",
        action="store_true",
        help="no checks and no timing: the list of rows, to be filled on a machine with a GPU",
    )
    options = parser.parse_args(arguments)
    if options.mamba_ssm and not (options.mamba_ssm / "mamba_ssm").is_dir():
        parser.error(f"--mamba-ssm: {options.mamba_ssm} has no folder 'mamba_ssm'")
    return options


def _write(options: argparse.Namespace, document: dict[str, Any]) -> None:
    if options.json is None:
        return
    document["command"] = "python plugins/gpu_check " + " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in vars(options).items()
        if value and name not in ("json", "mamba_ssm")
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    # The folder of this file is not a place to import from.
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]
    sys.exit(main())
