"""Train one of the two demo checkpoints on the standard library's own sources."""

from __future__ import annotations

import ctypes
import datetime
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from checkpoint import rounded, save_folder
from data import Windows, held_out_text, training_text
from evaluate import WINDOW, bits_per_byte, compressed_bits_per_byte
from model import SHAPES, ByteLM
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

HERE = Path(__file__).resolve().parent
NO_DECAY = ("A_log", "D", "dt_bias", "bias", "norm.weight", "norm_f.weight", "embeddings.weight")
STAGES = ((0.5, 8, 256), (0.8, 8, 512), (1.0, 4, 1024))
"""(until this share of the budget, rows, bytes per row): short windows first, long ones last."""


@dataclass
class Budget:
    """A number of steps or of minutes, whichever was given."""

    steps: int | None
    minutes: float | None

    def __post_init__(self) -> None:
        self.start = time.monotonic()

    def share(self, step: int) -> float:
        """Share of the budget used before `step`, 1.0 when it is spent."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, (time.monotonic() - self.start) / (60.0 * self.minutes))


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory: saves a fifth of the time, which goes to page faults."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def make_optimizer(model: ByteLM, lr: float, decay: float) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices and convolutions only."""
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        (without if name.endswith(NO_DECAY) else with_decay).append(p)
    groups = [
        {"params": with_decay, "weight_decay": decay},
        {"params": without, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-9, fused=True)


def learning_rate(peak: float, share: float, step: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine down to a hundredth of the peak."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * share))
    return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * cosine)


def report(model: ByteLM, limit: int | None, record: dict[str, Any]) -> dict[str, Any]:
    """training.json: the run and its measured figures, for the weights rounded to float16."""
    text = held_out_text(limit)
    other = compressed_bits_per_byte(text)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **record,
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_bytes": len(text),
        "held_out_window": WINDOW,
        "held_out_bits_per_byte": round(bits_per_byte(rounded(model), text), 4),
        "gzip_9_bits_per_byte": round(other["gzip"], 4),
        "xz_9_bits_per_byte": round(other["xz"], 4),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--family", type=click.Choice(sorted(SHAPES)), required=True)
@click.option("--minutes", type=float, help="Wall-clock budget; the schedule follows the clock.")
@click.option("--steps", type=click.IntRange(min=1), help="Step budget, repeatable to the bit.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: <family>-bytes here.")
@click.option("--lr", default=4e-3, show_default=True, help="Peak learning rate.")
@click.option("--weight-decay", default=0.1, show_default=True)
@click.option("--warmup", default=150, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--save-minutes", default=4.0, show_default=True, help="Between checkpoints.")
def main(
    family: str,
    minutes: float | None,
    steps: int | None,
    out: Path | None,
    lr: float,
    weight_decay: float,
    warmup: int,
    seed: int,
    threads: int,
    save_minutes: float,
) -> None:
    """Train for --minutes or --steps (give one) and write a transformers folder."""
    if (minutes is None) == (steps is None):
        raise click.UsageError("give exactly one of --minutes and --steps")
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    folder = out or HERE / f"{family}-bytes"
    text = training_text()
    windows = Windows(text, seed)
    model = ByteLM(SHAPES[family])
    optimizer = make_optimizer(model, lr, weight_decay)
    budget = Budget(steps, minutes)
    record: dict[str, Any] = {"seed": seed, "steps": 0, "bytes_seen": 0}
    record.update(training_bytes=len(text), peak_learning_rate=lr, weight_decay=weight_decay)
    console = Console(stderr=True)
    saved, smooth, step = time.monotonic(), 8.0, 0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(family, total=1.0)
        while (share := budget.share(step)) < 1.0:
            rows, length = next((r, n) for until, r, n in STAGES if share < until)
            rate = learning_rate(lr, share, step, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = model.loss(*windows.batch(rows, length))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            smooth += (loss.item() / math.log(2.0) - smooth) * max(0.01, 1.0 / step)
            record.update(steps=step, bytes_seen=record["bytes_seen"] + rows * length)
            label = f"{family} step {step} {smooth:.3f} bits/byte lr {rate:.1e}"
            progress.update(bar, completed=share, description=label)
            if time.monotonic() - saved > 60.0 * save_minutes:
                found = report(model, 65536, {**record, "finished": False})
                save_folder(folder, model, found)
                console.print(f"{label} held-out {found['held_out_bits_per_byte']}")
                saved = time.monotonic()
    found = report(model, None, {**record, "finished": True})
    found["minutes"] = round((time.monotonic() - budget.start) / 60.0, 1)
    size = save_folder(folder, model, found)
    console.print(f"{family}: {found}")
    console.print(f"{size} bytes in {folder}")


if __name__ == "__main__":
    main()
