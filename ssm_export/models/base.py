"""The language model that every family shares: embedding, pre-norm residual blocks, norm, head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ssm_export import errors
from ssm_export.bundle import StateSpec
from ssm_export.errors import SsmExportError
from ssm_export.glossary import BATCH_AXIS
from ssm_export.layers.basic import Embedding, Head, RMSNorm, project_to_vocabulary, to_accumulator
from ssm_export.layers.state import MixerState

_Config = TypeVar("_Config", bound="ModelConfig")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision of the command line to torch type."""


@dataclass(frozen=True)
class ModelConfig:
    """The keys of config.json that families have in common, under their transformers names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    state_size: int
    expand: float = 2
    conv_kernel: int = 4
    layer_norm_epsilon: float = 1e-5
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    residual_in_fp32: bool = True
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls: type[_Config], values: Mapping[str, Any]) -> _Config:  # noqa: PYI019  # 3.10
        """Read the keys this family knows; ``BAD_MODEL_CONFIG`` names the first that is wrong."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        chosen = {name: values[name] for name in fields if values.get(name) is not None}
        for name, field in fields.items():
            if name not in chosen and field.default is dataclasses.MISSING:
                raise bad_config(name, "is missing")
        config = cls(**chosen)
        config.check()
        return config

    def check(self) -> None:
        """Refuse values that no graph can be made for."""
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "state_size"):
            require_positive(name, getattr(self, name))
        if not isinstance(self.conv_kernel, int) or not 2 <= self.conv_kernel <= 8:
            raise bad_config("conv_kernel", f"is {self.conv_kernel!r}, expected 2 to 8 taps")
        if self.hidden_act not in ("silu", "swish"):
            raise bad_config("hidden_act", f"is '{self.hidden_act}', only silu is supported")
        if not self.layer_norm_epsilon > 0:
            raise bad_config("layer_norm_epsilon", f"is {self.layer_norm_epsilon!r}")

    @property
    def inner(self) -> int:
        """D: the inner width of a mixer."""
        return int(self.expand * self.hidden_size)


def require_positive(name: str, value: object) -> None:
    """``BAD_MODEL_CONFIG`` unless ``value`` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise bad_config(name, f"is {value!r}, expected a positive integer")


def bad_config(key: str, what: str) -> SsmExportError:
    """The error for a value of config.json."""
    return SsmExportError(
        errors.BAD_MODEL_CONFIG, f"'{key}' {what}", where="config.json", fix="correct config.json"
    )


def time_step_rank(value: object, hidden_size: int) -> int:
    """R: an integer, or ``"auto"`` for ceil(hidden_size / 16)."""
    if value == "auto":
        return math.ceil(hidden_size / 16)
    require_positive("time_step_rank", value)
    return int(value)  # type: ignore[call-overload]  # checked on the line before


class Block(nn.Module):
    """``hidden + mixer(norm(hidden))``, in the type of the residual stream."""

    def __init__(self, norm: RMSNorm, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer

    def forward(
        self, hidden: Tensor, past: tuple[Tensor, ...], sequence_lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        mixed, present = self.mixer(self.norm(hidden), past, sequence_lengths)
        return hidden + mixed, present


class Backbone(nn.Module):
    """Embedding, blocks and the last norm: ids (B,T), states → hidden (B,T,M), states."""

    def __init__(self, config: ModelConfig, mixers: list[nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.layer_norm_epsilon
        self.embeddings = Embedding(config.vocab_size, width, dtype=dtype)
        self.layers = nn.ModuleList(
            Block(RMSNorm(width, epsilon, dtype=dtype), mixer) for mixer in mixers
        )
        self.norm_f = RMSNorm(width, epsilon, dtype=dtype)


class RecurrentLM(nn.Module):
    """A language model with explicit state. A family subclasses it and gives ``mixer``.

    Args:
        config: the family's config.
        dtype: type of weights and activations.
        state_dtype: type of the SSM states.
    """

    model_type: ClassVar[str]
    config_class: ClassVar[type[ModelConfig]]

    def __init__(
        self,
        config: Any,
        *,
        dtype: torch.dtype = torch.float32,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.state_dtype = state_dtype
        mixers = [self.mixer(config, dtype) for _ in range(config.num_hidden_layers)]
        self.backbone = Backbone(config, mixers, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Head(config.vocab_size, config.hidden_size, dtype=dtype)

    @staticmethod
    def mixer(config: Any, dtype: torch.dtype) -> nn.Module:
        """One mixer of this family."""
        raise NotImplementedError("a family gives its mixer")

    def sizes(self) -> dict[str, int]:
        """Sizes by the letters of the glossary."""
        config = self.config
        return {
            "V": config.vocab_size,
            "M": config.hidden_size,
            "L": config.num_hidden_layers,
            "D": config.inner,
            "N": config.state_size,
            "K": config.conv_kernel,
        }

    def layer_states(self, layer: int) -> tuple[MixerState, ...]:
        """The states of one layer, in order."""
        states: tuple[MixerState, ...] = self.backbone.layers[layer].mixer.states()  # type: ignore[union-attr, operator]  # every mixer has it
        return states

    def states(self) -> tuple[StateSpec, ...]:
        """Every state in graph order: layer by layer."""
        return tuple(
            StateSpec(
                name_in=f"past_{state.kind}.{layer}",
                name_out=f"present_{state.kind}.{layer}",
                kind=state.kind,
                layer=layer,
                shape=(BATCH_AXIS, *state.shape),
                dtype=dtype_name(self.state_dtype if state.recurrent else self.dtype),
                layout=state.layout,
            )
            for layer in range(len(self.backbone.layers))
            for state in self.layer_states(layer)
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """ids (B,T) → the residual stream (B,T,M), fp32 where the config says so."""
        hidden: Tensor = self.backbone.embeddings(input_ids)
        return to_accumulator(hidden) if self.config.residual_in_fp32 else hidden

    def tail(
        self, hidden: Tensor, sequence_lengths: Tensor | None = None, *, last_only: bool = False
    ) -> Tensor:
        """hidden (B,T,M) → logits (B,T,V), or (B,1,V) of each row's last token."""
        if last_only:
            hidden = last_token(hidden, sequence_lengths)
        hidden = self.backbone.norm_f(hidden)
        if self.config.tie_word_embeddings:
            return project_to_vocabulary(hidden, self.backbone.embeddings.weight)
        logits: Tensor = self.lm_head(hidden)
        return logits

    def forward(
        self,
        input_ids: Tensor,
        past: tuple[Tensor, ...],
        sequence_lengths: Tensor | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens from a state.

        Args:
            input_ids: (B,T) integers.
            past: every state in the order of :meth:`states`.
            sequence_lengths: (B,) valid tokens of each row, all when None.
            last_only: give the logits of each row's last token only.

        Returns:
            logits (B,T,V) or (B,1,V), and the present states.
        """
        hidden = self.embed(input_ids)
        present: list[Tensor] = []
        for layer, block in enumerate(self.backbone.layers):
            start = len(present)
            end = start + len(self.layer_states(layer))
            hidden, states = block(hidden, past[start:end], sequence_lengths)
            present.extend(states)
        return self.tail(hidden, sequence_lengths, last_only=last_only), tuple(present)


def last_token(hidden: Tensor, sequence_lengths: Tensor | None) -> Tensor:
    """hidden (B,T,M) → (B,1,M): the last token of each row (the first where a row has none)."""
    if sequence_lengths is None:
        return hidden.select(1, -1).unsqueeze(1)
    last = (sequence_lengths.long() - 1).clamp(min=0)
    index = last.reshape(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
    return torch.gather(hidden, 1, index)


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` → ``float32``."""
    return str(dtype).removeprefix("torch.")
