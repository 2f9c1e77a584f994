"""Every recipe on the demo checkpoints: what is saved, and what it costs on held-out text.

Each line of the table is one ``ssm-export quantize`` command; a bundle that stands there from an
earlier run is not made again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAIN_DEMO = ROOT / "samples" / "train_demo"
CHECKPOINTS = ("mamba-bytes", "mamba2-bytes")
RECIPES = ("w8a16", "w4a16", "w4a16-small", "w8a8", "w8a8-plain", "fp8", "mxfp8", "nvfp4", "mixed")


def write_texts(folder: Path) -> tuple[Path, Path]:
    """The text that the demo checkpoints were trained on, and the files held out from them."""
    sys.path.insert(0, str(TRAIN_DEMO))
    from data import SEPARATOR, held_out_text, training_text

    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = folder / "train.txt", folder / "held-out.txt"
    train.write_bytes(training_text().replace(SEPARATOR, b"\n"))
    held_out.write_bytes(held_out_text())
    return train, held_out


def run(*words: str) -> dict[str, Any] | None:
    """Run ``ssm-export *words``; its JSON document, or None where it failed and said why."""
    print(f"$ ssm-export {shlex.join(words)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "ssm_export", *words, "--json", "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def exported(checkpoint: str, folder: Path) -> Path:
    """The float bundle of a demo checkpoint."""
    bundle = folder / checkpoint
    words = ("export", str(TRAIN_DEMO / checkpoint), "-o", str(bundle))
    if not bundle.exists() and run(*words) is None:
        sys.exit(1)
    return bundle


def quantized(bundle: Path, recipe: str, texts: tuple[Path, Path], more: Sequence[str]) -> Any:
    """The report of a recipe; None where quantize refused the result."""
    output = bundle.with_name(f"{bundle.name}-{recipe}")
    report = output / "reports" / "quantize.json"
    if report.is_file():
        return json.loads(report.read_text(encoding="utf-8"))
    train, held_out = map(str, texts)
    words = ("quantize", str(bundle), "-o", str(output), "--recipe", recipe)
    words += ("--calibration", train, "--evaluation", held_out)
    return run(*words, *more)


def cells(report: dict[str, Any] | None) -> str:
    """Size and loss of one run as cells of a Markdown table."""
    if report is None:
        return "failed | | "
    before, after = (report["size"][when]["weights_file"] for when in ("before", "after"))
    quality = report["quality"]["quantized"]
    lost, same = quality["lost_bits_per_byte"], quality["top1"]
    return f"× {after / before:.2f} | {lost:+.4f} | {100 * same:.1f} %"


def main() -> None:
    """Quantize and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", default="build/quantize", help="folder of the bundles")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, metavar="R")
    parser.add_argument("--checkpoints", nargs="+", default=CHECKPOINTS, metavar="NAME")
    parser.add_argument("--texts-only", action="store_true", help="write the two text files only")
    options, more = parser.parse_known_args()
    folder = Path(options.output)
    texts = write_texts(folder)
    if options.texts_only:
        return
    bundles = [exported(name, folder) for name in options.checkpoints]
    heads = [f"{name}: weights | bits per byte | same token" for name in options.checkpoints]
    lines = [f"| recipe | {' | '.join(heads)} |", "|---|" + "---|---|---|" * len(bundles)]
    for recipe in options.recipes:
        found = (cells(quantized(bundle, recipe, texts, more)) for bundle in bundles)
        lines.append(f"| `{recipe}` | {' | '.join(found)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
