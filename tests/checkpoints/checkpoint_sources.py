"""What the checkpoint tests are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Source:
    """A model of transformers and the folder it was saved into."""

    folder: Path
    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    """Every parameter by name; the head is absent where it is tied."""


MAMBA2_SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "state_size": 12,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "head_dim": 16,
    "n_groups": 2,
    "chunk_size": 8,
    "tie_word_embeddings": False,
}
MAMBA_SIZES = {
    "vocab_size": 56,
    "hidden_size": 24,
    "state_size": 5,
    "num_hidden_layers": 3,
    "time_step_rank": 3,
}
