"""Mamba-2 language models (``model_type: mamba2``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ssm_export.layers.mamba2_mixer import Mamba2Mixer
from ssm_export.models.base import ModelConfig, RecurrentLM, bad_config, require_positive


@dataclass(frozen=True)
class Config(ModelConfig):
    """config.json of ``mamba2``."""

    num_heads: int = 128
    head_dim: int = 64
    n_groups: int = 8
    time_step_limit: Sequence[float] = (0.0, float("inf"))
    tie_word_embeddings: bool = False

    def check(self) -> None:
        super().check()
        for name in ("num_heads", "head_dim", "n_groups"):
            require_positive(name, getattr(self, name))
        if self.num_heads * self.head_dim != self.inner:
            raise bad_config(
                "num_heads",
                f"× head_dim is {self.num_heads} × {self.head_dim}, expected "
                f"expand × hidden_size = {self.inner}",
            )
        if self.num_heads % self.n_groups:
            raise bad_config("n_groups", f"{self.n_groups} does not divide {self.num_heads} heads")
        low, high = (float(limit) for limit in self.time_step_limit)
        if not 0 <= low <= high:
            raise bad_config("time_step_limit", f"is {self.time_step_limit!r}")


class Model(RecurrentLM):
    """Mamba-2."""

    model_type: ClassVar = "mamba2"
    config_class: ClassVar = Config

    @staticmethod
    def mixer(config: Config, dtype: torch.dtype) -> nn.Module:
        return Mamba2Mixer(
            width=config.hidden_size,
            heads=config.num_heads,
            head_width=config.head_dim,
            state_size=config.state_size,
            groups=config.n_groups,
            taps=config.conv_kernel,
            bias=config.use_bias,
            conv_bias=config.use_conv_bias,
            epsilon=config.layer_norm_epsilon,
            dt_limit=(float(config.time_step_limit[0]), float(config.time_step_limit[1])),
            dtype=dtype,
        )

    def sizes(self) -> dict[str, int]:
        config = self.config
        heads = {"H": config.num_heads, "P": config.head_dim, "G": config.n_groups}
        return {**super().sizes(), **heads}
