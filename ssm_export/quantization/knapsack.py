"""One option of each item: the least loss in a size, or the smallest size with a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ssm_export.quantization.evaluation import json_number

_CELLS: Final = 50_000
"""Cells of the knapsack's grid: bytes are rounded up to 1/50000 of their range at worst."""


@dataclass(frozen=True)
class Option:
    """A weight in one format.

    Attributes:
        scheme: the format asked for, ``float`` for the bundle's precision.
        stored: the format and block that the weight really gets, such as ``int4/64``.
        bytes: of codes and scales.
        kl_bits: KL(float ‖ this weight alone) in bits per token.
    """

    scheme: str
    stored: str
    bytes: int
    kl_bits: float

    def as_json(self) -> dict[str, Any]:
        """A JSON object; a divergence that is not finite is null."""
        return {name: json_number(value) for name, value in vars(self).items()}


class Knapsack:
    """One option of each item: the least divergence for every number of bytes.

    Bytes are counted from the cheapest options up, in units of their greatest common divisor; where
    that makes more than 50000 cells, in larger units, each difference rounded up, so that a choice
    never takes more bytes than it says. Equal choices go to fewer bytes, then to the first option.

    Args:
        items: the options of each item.
    """

    def __init__(self, items: Sequence[Sequence[Option]]) -> None:
        self._items = [undominated(item) for item in items]
        self.least_bytes = sum(item[0].bytes for item in self._items)
        extra = [[option.bytes - item[0].bytes for option in item] for item in self._items]
        span = sum(line[-1] for line in extra)
        self._unit = max(math.gcd(*(n for line in extra for n in line)), -(-span // _CELLS), 1)
        steps = [[-(-n // self._unit) for n in line] for line in extra]
        cells = 1 + sum(line[-1] for line in steps)
        self._cost = np.full(cells, math.inf)
        self._cost[0] = 0.0
        self._taken: list[np.ndarray] = []
        self._steps = steps
        for item, line in zip(self._items, steps, strict=True):
            best = np.full(cells, math.inf)
            taken = np.zeros(cells, np.int8)
            for number, (option, step) in enumerate(zip(item, line, strict=True)):
                cost = np.full(cells, math.inf)
                cost[step:] = self._cost[: cells - step] + option.kl_bits
                better = cost < best
                best[better], taken[better] = cost[better], number
            self._cost = best
            self._taken.append(taken)

    def best_within(self, budget: int) -> list[Option] | None:
        """The options with the least divergence in so many bytes; None where none are so small."""
        last = (budget - self.least_bytes) // self._unit
        if last < 0:
            return None
        return self._back_from(int(np.argmin(self._cost[: last + 1])))

    def smallest_within(self, divergence: float) -> list[Option] | None:
        """The options with the fewest bytes whose divergences add up to at most ``divergence``."""
        fitting = np.flatnonzero(self._cost <= divergence)
        return self._back_from(int(fitting[0])) if len(fitting) else None

    def best(self) -> list[Option]:
        """The options with the least divergence of all."""
        return self._back_from(int(np.argmin(self._cost)))

    def _back_from(self, cell: int) -> list[Option]:
        chosen = []
        for item, line, taken in zip(
            reversed(self._items), reversed(self._steps), reversed(self._taken), strict=True
        ):
            number = int(taken[cell])
            chosen.append(item[number])
            cell -= line[number]
        return chosen[::-1]


def undominated(item: Sequence[Option]) -> list[Option]:
    """The options by size, without those that cost more bytes and diverge no less."""
    kept: list[Option] = []
    for option in sorted(item, key=lambda option: (option.bytes, option.kl_bits)):
        if not kept or option.kl_bits < kept[-1].kl_bits:
            kept.append(option)
    return kept
