"""What a reference model is to verify: something that runs prompts in float64."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Reference(Protocol):
    """A model to compare with: ours in torch, or transformers'.

    It computes in float64 on the weights rounded to the precision of the bundle, and always from
    the initial state: verify never asks a reference to continue a prompt.

    Attributes:
        name: for reports, such as ``torch`` or ``transformers``.
    """

    name: str

    def forward(self, input_ids: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run a whole prompt.

        Args:
            input_ids: (B,T) integers.

        Returns:
            logits (B,T,V) float64 of every position, and the states after the prompt in float64
            under their ``past_*`` names, in the bundle's layouts. A reference that cannot give a
            state leaves it out; it is then not compared.
        """
        ...

    def generate(self, input_ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Greedy continuation.

        Args:
            input_ids: (B,T) prompt.
            count: tokens to add.

        Returns:
            tokens (B,count) int64, and the margins (B,count): top logit minus the second, at the
            position that each token was taken from.
        """
        ...
