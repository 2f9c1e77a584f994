"""How the next token is chosen from logits, and which tokens end a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Final

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError

_BLOCK: Final = 4
"""Numbers that Philox gives for one value of its counter."""


@dataclass(frozen=True)
class Sampler:
    """Picks a token from logits.

    Attributes:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_k: only so many of the likeliest; 0 for all.
        top_p: only the likeliest that have this probability together.
        seed: of the random numbers, 0 or more.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, right in (
            ("--temperature", self.temperature, self.temperature >= 0),
            ("--top-k", self.top_k, self.top_k >= 0),
            ("--top-p", self.top_p, 0 < self.top_p <= 1),
            ("--seed", self.seed, isinstance(self.seed, Integral) and self.seed >= 0),
        ):
            if not right:
                raise SsmExportError(
                    errors.BAD_OPTION,
                    f"{option} is {value}",
                    fix="temperature and top-k are at least 0, top-p is above 0 and at most 1, a "
                    "seed is a whole number of 0 or more",
                )

    def picker(self, row: int = 0, tokens_read: int = 0) -> Callable[[np.ndarray], int]:
        """A function logits (V,) → token, to be called once for each token that the row reads.

        Args:
            row: draws with seed + row, so forks of one state part.
            tokens_read: by the row so far. The token after n others takes number n of the seed,
                so a stream that goes on from a saved state draws as if it had never stopped.
        """
        if self.temperature == 0:
            return lambda logits: int(logits.argmax())
        draw = _numbers(int(self.seed) + row, tokens_read)
        return lambda logits: self._pick(logits.astype(np.float64), draw())

    def _pick(self, logits: np.ndarray, number: float) -> int:
        if not np.isfinite(logits.max()):  # -inf is a token that never comes
            raise SsmExportError(
                errors.RUNNER_FAILED,
                "the logits hold NaN or Inf, so no token can be drawn from them",
                fix="ssm-export verify BUNDLE says where they come from",
            )
        order = np.argsort(-logits, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        scaled = (logits[order] - logits[order[0]]) / self.temperature
        probabilities = np.exp(scaled)
        probabilities /= probabilities.sum()
        before = np.cumsum(probabilities) - probabilities
        kept = before < self.top_p  # the first is always kept
        reached = np.cumsum(np.where(kept, probabilities, 0.0))
        return int(order[np.searchsorted(reached, number * reached[-1], side="right")])


class Chooser:
    """Chooses the next token of each row, until the row ends.

    Args:
        sampler: chooses one.
        ends: tokens that end a row.
        tokens_read: (B,) how many tokens each row has read.

    Attributes:
        ended: the rows that have ended.
    """

    def __init__(self, sampler: Sampler, ends: frozenset[int], tokens_read: np.ndarray) -> None:
        self._picks = [sampler.picker(row, int(read)) for row, read in enumerate(tokens_read)]
        self._ends = ends
        self.ended: set[int] = set()

    def __call__(self, logits: np.ndarray) -> tuple[int | None, ...]:
        """logits (B,V) → the token of each row, None where the row has ended."""
        tokens: list[int | None] = [None] * len(self._picks)
        for row, pick in enumerate(self._picks):
            if row not in self.ended:
                token = pick(logits[row])
                if token in self._ends:
                    self.ended.add(row)
                else:
                    tokens[row] = token
        return tuple(tokens)


def _numbers(seed: int, first: int) -> Callable[[], float]:
    """Uniform numbers of [0,1) of a seed, from number ``first`` on.

    Philox encrypts a counter, so any place in its stream is reached by one jump. Numbers are made
    of its bits here, because numpy promises the bits of every release and not its distributions.
    """
    bits = np.random.Philox(seed)
    bits.advance(first // _BLOCK)
    for _ in range(first % _BLOCK):
        bits.random_raw()
    return lambda: (int(bits.random_raw()) >> 11) * 2.0**-53


def end_tokens(folder: Path) -> frozenset[int]:
    """Ids that end a text: of generation_config.json where it names any, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        ids = found if isinstance(found, list) else [found]
        ends = frozenset(item for item in ids if isinstance(item, int))
        if ends:
            return ends
    return frozenset()
