"""The whole way in one go: export, verify, build, bench and generate, on a checkpoint of this
repository, into ``build/demo``. Each stage is the command that a person would type."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "def read(self, size=-1):\n"


@dataclass(frozen=True)
class Stage:
    """A verb that was run: its JSON document and the wall time."""

    verb: str
    document: dict[str, Any]
    seconds: float


def run(console: Console, *words: str) -> Stage:
    """Run ``ssm-export *words``; progress and errors show on stderr as they come."""
    console.print(f"\n[bold]$ ssm-export {escape(shlex.join(words))}[/]")
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stdout:
        command = [sys.executable, "-m", "ssm_export", *words, "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=stdout, check=False)
        stdout.seek(0)
        if done.returncode:
            sys.exit(done.returncode)
        return Stage(words[0], json.load(stdout), time.perf_counter() - began)


def summary(bundle: Path, stages: list[Stage]) -> Table:
    """What was made and what was measured, a few lines for each stage."""
    table = Table(title=f"What was made in {bundle} and measured", title_justify="left")
    for heading in ("stage", "seconds", "what", "result"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    for stage in stages:
        lines = LINES[stage.verb](bundle, stage.document)
        for number, (what, result) in enumerate(lines):
            first = number == 0
            verb, seconds = (stage.verb, f"{stage.seconds:.1f}") if first else ("", "")
            last = number == len(lines) - 1
            table.add_row(verb, seconds, what, escape(result), end_section=last)
    return table


def exported(bundle: Path, document: dict[str, Any]) -> list[tuple[str, str]]:
    """What export made."""
    manifest = json.loads((ROOT / bundle / "manifest.json").read_text(encoding="utf-8"))
    plan, lowering = document["plan"], manifest["lowering"]
    graphs = [
        (f"{form}, {name}", f"{entry['path']}, {entry['bytes'] / 1e3:.0f} kB")
        for form, files in manifest["graphs"].items()
        for name, entry in files.items()
    ]
    return [
        ("model", f"{plan['family']}, {plan['parameters']:,} parameters"),
        ("weights", f"onnx/weights.data, {manifest['weights']['bytes'] / 1e6:.2f} MB"),
        *graphs,
        ("runs by default", f"{lowering['chosen']}: {lowering['why']}"),
    ]


def verified(bundle: Path, document: dict[str, Any]) -> list[tuple[str, str]]:
    """What verify found, check by check."""
    lines = []
    for check in document["checks"]:
        if check["ok"] is None:
            lines.append((check["name"], f"not run: {check['where']}"))
        else:
            said = "passed" if check["ok"] else "FAILED"
            worst, gate = check["worst"], check["tolerance"]
            lines.append((check["name"], f"{said}, worst {worst:.1e} of {gate:.1e}"))
    return lines


def built(bundle: Path, document: dict[str, Any]) -> list[tuple[str, str]]:
    """The engines."""
    return [
        (
            f"{entry['form']} engine",
            f"{entry['file']['path']}, {entry['file']['bytes'] / 1e6:.2f} MB, {entry['note']}",
        )
        for entry in document["engines"]
    ]


def benched(bundle: Path, document: dict[str, Any]) -> list[tuple[str, str]]:
    """The speed that was measured."""
    return [
        (
            f"{row['phase']} {row['tokens']} tokens",
            f"{row['p50_ms']:.2f} ms, {row['tokens_per_s']:,.0f} tokens/s on {row['runner']}",
        )
        for row in document["rows"]
    ]


def generated(bundle: Path, document: dict[str, Any]) -> list[tuple[str, str]]:
    """The text."""
    return [("text", PROMPT + document["text"])]


LINES = {
    "export": exported,
    "verify": verified,
    "build": built,
    "bench": benched,
    "generate": generated,
}


def main() -> None:
    """Run every stage and show the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="samples/train_demo/mamba-bytes")
    parser.add_argument("-o", "--output", default="build/demo", help="made anew on every run")
    options = parser.parse_args()
    bundle = Path(options.output)
    if (ROOT / bundle / "manifest.json").is_file():  # a bundle of an earlier run, nothing else
        shutil.rmtree(ROOT / bundle)
    console = Console(width=None if sys.stdout.isatty() else 110)
    target = str(bundle)
    stages = [
        run(console, "export", options.checkpoint, "-o", target),
        run(console, "verify", target),
        run(console, "build", target, "--engine", "tensorrt-rtx"),
        run(console, "bench", target, "--prefill", "128,1024"),
        run(console, "generate", target, PROMPT, "--max-tokens", "160", "--temperature", "0.6"),
    ]
    console.print()
    console.print(summary(bundle, stages))
    console.print(f"The bundle is in {bundle}: ssm-export inspect {bundle}", highlight=False)


if __name__ == "__main__":
    main()
