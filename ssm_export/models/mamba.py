"""Mamba-1 language models (``model_type: mamba``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ssm_export.layers.mamba_mixer import MambaMixer
from ssm_export.models.base import ModelConfig, RecurrentLM, time_step_rank


@dataclass(frozen=True)
class Config(ModelConfig):
    """config.json of ``mamba``."""

    time_step_rank: int | str = "auto"

    @property
    def rank(self) -> int:
        """R: rank of the dt projection."""
        return time_step_rank(self.time_step_rank, self.hidden_size)

    def check(self) -> None:
        super().check()
        time_step_rank(self.time_step_rank, self.hidden_size)


class Model(RecurrentLM):
    """Mamba-1."""

    model_type: ClassVar = "mamba"
    config_class: ClassVar = Config

    @staticmethod
    def mixer(config: Config, dtype: torch.dtype) -> nn.Module:
        return MambaMixer(
            width=config.hidden_size,
            inner=config.inner,
            state_size=config.state_size,
            rank=config.rank,
            taps=config.conv_kernel,
            bias=config.use_bias,
            conv_bias=config.use_conv_bias,
            dtype=dtype,
        )
