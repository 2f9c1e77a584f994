"""Bits per byte of a checkpoint folder on the held-out text, next to gzip and xz."""

from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Callable
from pathlib import Path

import click
import torch
from checkpoint import load_folder
from data import SEPARATOR, evaluation_batches, held_out_text
from rich.console import Console
from rich.table import Table
from torch import Tensor

WINDOW = 1024
"""Bytes per evaluation window. Each window starts from a zero state."""

PROMPT = "import os\n\ndef "

LogitsFn = Callable[[Tensor], Tensor]


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits per byte of gzip -9 and xz -9 on the same text in one piece."""
    return {
        "gzip": len(gzip.compress(text, 9, mtime=0)) * 8 / len(text),
        "xz": len(lzma.compress(text, preset=9)) * 8 / len(text),
    }


@torch.inference_mode()
def bits_per_byte(logits: LogitsFn, text: bytes, window: int = WINDOW, rows: int = 8) -> float:
    """Mean bits per byte of `text`; `logits` maps ids (B, T) int64 to (B, T, 256) float."""
    nats = 0.0
    for ids, targets in evaluation_batches(text, window, rows):
        out = logits(ids).flatten(0, 1).float()
        nats += float(torch.nn.functional.cross_entropy(out, targets.flatten(), reduction="sum"))
    return nats / len(text) / math.log(2.0)


@torch.inference_mode()
def generate(logits: LogitsFn, prompt: bytes, count: int, temperature: float, seed: int) -> bytes:
    """Continue `prompt` by `count` bytes, running the whole text again for each byte."""
    generator = torch.Generator().manual_seed(seed)
    ids = list(SEPARATOR + prompt)
    for _ in range(count):
        last = logits(torch.tensor([ids]))[0, -1].float()
        if temperature > 0:
            weights = torch.softmax(last / temperature, -1)
            ids.append(int(torch.multinomial(weights, 1, generator=generator)))
        else:
            ids.append(int(last.argmax()))
    return bytes(ids[1:])


def transformers_logits(folder: Path) -> LogitsFn:
    """The same folder run by transformers in float32 (its full forward, no cache)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return lambda ids: model(input_ids=ids, use_cache=False).logits


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--limit-bytes", type=click.IntRange(min=1), help="Use only a prefix of the text.")
@click.option("--window", default=WINDOW, show_default=True, type=click.IntRange(min=1))
@click.option("--against-transformers", is_flag=True, help="Compare the two forward passes.")
@click.option("--sample", "sample", is_flag=True, help="Also continue a prompt by 300 bytes.")
@click.option("--temperature", default=0.7, show_default=True, help="0 means greedy.")
@click.option("--seed", default=0, show_default=True)
def main(
    folders: tuple[Path, ...],
    limit_bytes: int | None,
    window: int,
    against_transformers: bool,
    sample: bool,
    temperature: float,
    seed: int,
) -> None:
    """Print one table for checkpoint FOLDERS."""
    text = held_out_text(limit_bytes)
    click.echo(f"{len(text)} held-out bytes; the models read windows of {window} bytes")
    table = Table()
    table.add_column("what")
    table.add_column("bits/byte", justify="right")
    for folder in folders:
        model = load_folder(folder)
        table.add_row(folder.resolve().name, f"{bits_per_byte(model, text, window):.4f}")
    for name, value in compressed_bits_per_byte(text).items():
        table.add_row(f"{name} -9", f"{value:.4f}")
    console = Console()
    console.print(table)
    for folder in folders if against_transformers else ():
        part = text[: 8 * window + window // 3]
        ours = bits_per_byte(load_folder(folder), part, window)
        theirs = bits_per_byte(transformers_logits(folder), part, window)
        click.echo(
            f"{folder.resolve().name}: {len(part)} bytes, here {ours:.6f}, "
            f"transformers {theirs:.6f}, difference {abs(ours - theirs):.1e}"
        )
        if abs(ours - theirs) > 1e-3:
            raise click.ClickException("the two forward passes disagree")
    for folder in folders if sample else ():
        out = generate(load_folder(folder), PROMPT.encode(), 300, temperature, seed)
        click.echo(f"--- {folder.resolve().name}, temperature {temperature}")
        click.echo(out.decode("utf-8", errors="replace"))


if __name__ == "__main__":
    main()
