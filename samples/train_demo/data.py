"""The text: sources of the running Python's own standard library.

Which files are held out depends on a hash of the relative path alone, so every Python version
holds the same files out. Training joins files with a NUL byte, which no source file contains.
"""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SEPARATOR = b"\0"
HELD_OUT_ONE_IN = 16

EXCLUDED_PARTS = frozenset(
    {
        "site-packages",  # not the standard library
        "dist-packages",
        "__pycache__",
        "test",  # absent from many installs, and mostly data
        "tests",
        "idle_test",
        "lib2to3",  # removed from later versions
        "encodings",  # generated character tables
        "pydoc_data",  # one generated string
    }
)
EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")


def source_files() -> list[tuple[str, Path]]:
    """(relative POSIX path, path) of every source file used, sorted by relative path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if EXCLUDED_PARTS.isdisjoint(parts) and not parts[0].startswith(EXCLUDED_PREFIXES):
            found.append(("/".join(parts), path))
    return sorted(found)


def path_hash(relative: str) -> int:
    """A 64-bit hash of the relative path, the same on every machine and version."""
    return int.from_bytes(hashlib.sha256(relative.encode()).digest()[:8], "big")


def is_held_out(relative: str) -> bool:
    """True for the one file in `HELD_OUT_ONE_IN` that training never reads."""
    return path_hash(relative) % HELD_OUT_ONE_IN == 0


def held_out_files() -> list[tuple[str, Path]]:
    """The held-out files in hash order, so that a prefix is a mixed sample."""
    chosen = [item for item in source_files() if is_held_out(item[0])]
    return sorted(chosen, key=lambda item: path_hash(item[0]))


@functools.cache
def _held_out() -> bytes:
    return b"".join(path.read_bytes() for _, path in held_out_files())


def held_out_text(limit_bytes: int | None = None) -> bytes:
    """The held-out files joined as they are; at most `limit_bytes` from the start."""
    return _held_out()[:limit_bytes]


def training_text() -> bytes:
    """Every other file once (exact copies dropped), each followed by a NUL byte."""
    seen: set[bytes] = set()
    parts = []
    for relative, path in source_files():
        if is_held_out(relative):
            continue
        body = path.read_bytes()
        digest = hashlib.sha256(body).digest()
        if body and digest not in seen:
            seen.add(digest)
            parts.append(body + SEPARATOR)
    return b"".join(parts)


class Windows:
    """Endless random windows of a byte string, without repeats within a pass."""

    def __init__(self, text: bytes, seed: int) -> None:
        self.bytes = np.frombuffer(text, dtype=np.uint8)
        self.rng = np.random.default_rng(seed)
        self.queue: list[int] = []
        self.length = 0

    def _refill(self) -> None:
        """Cut the text into windows at a random offset and shuffle their starts."""
        offset = int(self.rng.integers(0, self.length))
        starts = np.arange(offset, len(self.bytes) - self.length - 1, self.length)
        self.rng.shuffle(starts)
        self.queue = starts.tolist()

    def batch(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs and next-byte targets, both (rows, length) int64."""
        if length != self.length:
            self.length, self.queue = length, []
        starts = []
        for _ in range(rows):
            if not self.queue:
                self._refill()
            starts.append(self.queue.pop())
        cut = np.stack([self.bytes[s : s + length + 1] for s in starts]).astype(np.int64)
        both = torch.from_numpy(cut)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def evaluation_batches(text: bytes, window: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cover `text` once with windows that start from a zero state; every byte is a target once.

    Yields inputs and targets (rows, window) int64; a shorter last window comes alone. The input
    before the first byte of the text is NUL, else it is the byte before the window.
    """
    values = torch.from_numpy(np.frombuffer(SEPARATOR + text, dtype=np.uint8).astype(np.int64))
    full = len(text) // window
    for lo in range(0, full, rows):
        starts = [k * window for k in range(lo, min(lo + rows, full))]
        yield (
            torch.stack([values[s : s + window] for s in starts]),
            torch.stack([values[s + 1 : s + 1 + window] for s in starts]),
        )
    if full * window < len(text):
        yield values[None, full * window : -1], values[None, full * window + 1 :]
