"""How the next token is chosen from logits, and which tokens end a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError


@dataclass(frozen=True)
class Sampler:
    """Picks a token from logits.

    Attributes:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_k: only so many of the likeliest; 0 for all.
        top_p: only the likeliest that have this probability together.
        seed: of the random numbers.
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
        ):
            if not right:
                raise SsmExportError(
                    errors.BAD_OPTION,
                    f"{option} is {value}",
                    fix="temperature and top-k are at least 0, top-p is above 0 and at most 1",
                )

    def picker(self, row: int = 0) -> Callable[[np.ndarray], int]:
        """A function logits (V,) → token, with random numbers of its own, those of seed + row."""
        rng = np.random.default_rng(self.seed + row)
        return lambda logits: self._pick(logits.astype(np.float64), rng)

    def _pick(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        scaled = (logits[order] - logits[order[0]]) / self.temperature
        probabilities = np.exp(scaled)
        probabilities /= probabilities.sum()
        before = np.cumsum(probabilities) - probabilities
        kept = before < self.top_p  # the first is always kept
        probabilities = np.where(kept, probabilities, 0.0)
        return int(rng.choice(order, p=probabilities / probabilities.sum()))


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
