"""The original mamba_ssm layout: its config, in transformers' keys.

Keys and defaults are those of ``MambaConfig`` (mamba_ssm/models/config_mamba.py) and of the
constructors of ``Mamba`` and ``Mamba2`` (mamba_ssm/modules). Tensor names differ from transformers'
only in the embedding (:mod:`ssm_export.checkpoints.names`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ssm_export import errors
from ssm_export.errors import SsmExportError

MODEL_TYPES = {"Mamba1": "mamba", "Mamba2": "mamba2"}
"""``ssm_cfg.layer`` to transformers' model types."""

NORM_EPSILON = 1e-5
"""mamba_ssm builds every norm with this epsilon and does not store it."""

_REQUIRED = object()
_NO_EFFECT = frozenset(
    {"layer", "layer_idx", "device", "dtype", "process_group", "sequence_parallel", "conv_init"}
    | {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range"}
    | {"use_fast_path", "use_mem_eff_path"}
)
"""Options of a mixer that matter while training or choose a kernel."""
_COMMON = frozenset({"d_state", "d_conv", "expand", "bias", "conv_bias"})
_MAMBA1 = _COMMON | {"dt_rank"}
_MAMBA2 = _COMMON | {"headdim", "ngroups", "chunk_size", "dt_limit", "d_ssm", "D_has_hdim"}
_MAMBA2 |= {"rmsnorm", "norm_before_gate"}


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is mamba_ssm's (transformers' has ``hidden_size``)."""
    return "d_model" in config and "n_layer" in config and "hidden_size" not in config


def transformers_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config that transformers would have for the same model.

    Args:
        config: mamba_ssm's ``config.json``.
        where: its path, for errors.

    Returns:
        transformers' keys, ``vocab_size`` being the rows of the embedding after padding, and
        ``unpadded_vocab_size``. For a mixer that is neither Mamba nor Mamba-2, only what all have.

    Raises:
        SsmExportError: ``BAD_MODEL_CONFIG`` for a value of the wrong kind, or for a model with
            parts that no supported family has (LayerNorm, attention layers, MLPs, …).
    """
    top = _Reader(config, where, "")
    _refuse_unsupported(top)
    mixer = _Reader(_mapping(top, "ssm_cfg"), where, "ssm_cfg.")
    layer = mixer.get("layer", "Mamba1", str)
    model_type = MODEL_TYPES.get(layer, layer.lower())
    vocab = top.size("vocab_size")
    multiple = top.size("pad_vocab_size_multiple", 8)
    hidden = top.size("d_model")
    common = {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": top.size("n_layer"),
        "vocab_size": -(-vocab // multiple) * multiple,
        "unpadded_vocab_size": vocab,
        "layer_norm_epsilon": NORM_EPSILON,
        "residual_in_fp32": top.get("residual_in_fp32", True, bool),
        "tie_word_embeddings": top.get("tie_embeddings", True, bool),
        "hidden_act": "silu",
    }
    if layer == "Mamba1":
        return {**common, **_mamba1(mixer, hidden)}
    if layer == "Mamba2":
        return {**common, **_mamba2(mixer, hidden)}
    return common


class _Reader:
    """Values of one object of the config, checked for their kind."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str) -> None:
        self.values = values
        self.where = where
        self.prefix = prefix

    def bad(self, what: str, fix: str = "correct config.json") -> SsmExportError:
        return SsmExportError(errors.BAD_MODEL_CONFIG, what, where=self.where, fix=fix)

    def get(self, key: str, default: Any, *kinds: type) -> Any:
        value = self.values.get(key, default)
        if value is _REQUIRED:
            raise self.bad(f"'{self.prefix}{key}' is missing")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise self.bad(f"'{self.prefix}{key}' is {value!r}, which has to be {wanted}")
        return value

    def size(self, key: str, default: Any = _REQUIRED) -> int:
        value: int = self.get(key, default, int)
        if value < 1:
            raise self.bad(f"'{self.prefix}{key}' is {value}, which has to be at least 1")
        return value

    def refuse(self, key: str, wrong: bool, meaning: str) -> None:
        if wrong:
            what = f"'{self.prefix}{key}' is {self.values.get(key)!r}: {meaning}"
            raise self.bad(what, "export a checkpoint whose layers are Mamba or Mamba-2 only")

    def refuse_unknown(self, known: frozenset[str]) -> None:
        for key in self.values:
            if key not in known and key not in _NO_EFFECT:
                raise self.bad(f"'{self.prefix}{key}' is no option of this layer that is supported")


def _mapping(top: _Reader, key: str) -> Mapping[str, Any]:
    value: Mapping[str, Any] = top.get(key, {}, dict)
    return value


def _refuse_unsupported(top: _Reader) -> None:
    values = top.values
    top.refuse(
        "attn_layer_idx", bool(values.get("attn_layer_idx")), "attention layers are not supported"
    )
    top.refuse("d_intermediate", bool(values.get("d_intermediate")), "MLPs are not supported")
    top.refuse(
        "rms_norm", not top.get("rms_norm", True, bool), "LayerNorm is not supported, only RMSNorm"
    )


def _inner_width(mixer: _Reader, hidden: int) -> tuple[int | float, int]:
    expand: int | float = mixer.get("expand", 2, int, float)
    inner = int(expand * hidden)
    if inner < 1 or inner != expand * hidden:
        raise mixer.bad(f"'ssm_cfg.expand' {expand} times 'd_model' {hidden} is no whole width")
    return expand, inner


def _mamba1(mixer: _Reader, hidden: int) -> dict[str, Any]:
    mixer.refuse_unknown(_MAMBA1)
    expand, inner = _inner_width(mixer, hidden)
    rank = mixer.get("dt_rank", "auto", int, str)
    return {
        "state_size": mixer.size("d_state", 16),
        "conv_kernel": mixer.size("d_conv", 4),
        "expand": expand,
        "intermediate_size": inner,
        "time_step_rank": math.ceil(hidden / 16) if rank == "auto" else mixer.size("dt_rank"),
        "use_bias": mixer.get("bias", False, bool),
        "use_conv_bias": mixer.get("conv_bias", True, bool),
    }


def _mamba2(mixer: _Reader, hidden: int) -> dict[str, Any]:
    mixer.refuse_unknown(_MAMBA2)
    expand, inner = _inner_width(mixer, hidden)
    values = mixer.values
    mixer.refuse(
        "d_ssm", values.get("d_ssm") not in (None, inner), "an MLP inside the mixer is unsupported"
    )
    mixer.refuse(
        "rmsnorm", not mixer.get("rmsnorm", True, bool), "a mixer without its norm is unsupported"
    )
    mixer.refuse(
        "norm_before_gate",
        mixer.get("norm_before_gate", False, bool),
        "only the norm after the gate is supported",
    )
    mixer.refuse(
        "D_has_hdim", mixer.get("D_has_hdim", False, bool), "only one D per head is supported"
    )
    width = mixer.size("headdim", 64)
    if inner % width:
        raise mixer.bad(f"'ssm_cfg.headdim' {width} does not divide the inner width {inner}")
    return {
        "state_size": mixer.size("d_state", 128),
        "conv_kernel": mixer.size("d_conv", 4),
        "expand": expand,
        "intermediate_size": inner,
        "head_dim": width,
        "num_heads": inner // width,
        "n_groups": mixer.size("ngroups", 1),
        "chunk_size": mixer.size("chunk_size", 256),
        "time_step_limit": _limits(mixer),
        "use_bias": mixer.get("bias", False, bool),
        "use_conv_bias": mixer.get("conv_bias", True, bool),
    }


def _limits(mixer: _Reader) -> list[float]:
    """``dt_limit``: the range that dt is clamped to after its softplus."""
    limits = mixer.get("dt_limit", (0.0, math.inf), list, tuple)
    numbers = all(isinstance(limit, (int, float)) for limit in limits)
    if len(limits) != 2 or not numbers or not limits[0] <= limits[1]:
        raise mixer.bad(f"'ssm_cfg.dt_limit' is {limits!r}, which has to be [low, high]")
    return [float(limit) for limit in limits]
