"""The original layout: names, config, padding and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sources import MAMBA2_SIZES, MAMBA_SIZES, Source

from ssm_export import errors
from ssm_export.checkpoints import open_checkpoint, without_tied_head
from ssm_export.checkpoints.mamba_ssm import transformers_config
from ssm_export.errors import SsmExportError

MAMBA_130M = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
"""config.json of state-spaces/mamba-130m."""

MAMBA2_130M = {
    "d_model": 768,
    "d_intermediate": 0,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}
"""config.json of state-spaces/mamba2-130m."""


def original_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' parameters under the names of mamba_ssm's modules."""
    return {name.replace("embeddings", "embedding"): value for name, value in weights.items()}


def write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_mamba1(mamba_source: Source, tmp_path: Path) -> None:
    """Both layouts of one model give the same tensors, and configs that agree."""
    config = {
        **MAMBA_130M,
        "d_model": MAMBA_SIZES["hidden_size"],
        "n_layer": MAMBA_SIZES["num_hidden_layers"],
        "vocab_size": 50,
        "pad_vocab_size_multiple": 8,
        "ssm_cfg": {"d_state": 5, "dt_rank": 3},
    }
    weights = original_names(mamba_source.weights)
    weights["lm_head.weight"] = weights["backbone.embedding.weight"]  # tied, in the file twice
    with open_checkpoint(write(tmp_path, config, weights)) as checkpoint:
        assert (checkpoint.layout, checkpoint.model_type) == ("mamba_ssm", "mamba")
        assert checkpoint.config["vocab_size"] == 56
        assert checkpoint.config["unpadded_vocab_size"] == 50
        same = {"hidden_size", "num_hidden_layers", "state_size", "time_step_rank", "expand"}
        same |= {"intermediate_size", "conv_kernel", "use_bias", "use_conv_bias", "hidden_act"}
        same |= {"layer_norm_epsilon", "residual_in_fp32", "vocab_size"}
        for key in same:
            assert checkpoint.config[key] == mamba_source.config[key], key
        tied = without_tied_head(checkpoint.tensors)
        assert set(tied) == set(mamba_source.weights)
        for name, expected in mamba_source.weights.items():
            assert torch.equal(tied[name].read(), expected), name


def test_mamba2(mamba2_source: Source, tmp_path: Path) -> None:
    config = {
        **MAMBA2_130M,
        "d_model": MAMBA2_SIZES["hidden_size"],
        "n_layer": MAMBA2_SIZES["num_hidden_layers"],
        "vocab_size": 48,
        "ssm_cfg": {
            "layer": "Mamba2",
            "d_state": 12,
            "headdim": 16,
            "ngroups": 2,
            "chunk_size": 8,
            "dt_limit": [0.001, 0.5],
        },
        "tie_embeddings": False,
    }
    write(tmp_path, config, original_names(mamba2_source.weights))
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.layout, checkpoint.model_type) == ("mamba_ssm", "mamba2")
        assert checkpoint.config["time_step_limit"] == [0.001, 0.5]
        same = {"hidden_size", "num_hidden_layers", "state_size", "num_heads", "head_dim"}
        same |= {"n_groups", "chunk_size", "expand", "conv_kernel", "use_bias", "use_conv_bias"}
        same |= {"layer_norm_epsilon", "residual_in_fp32", "vocab_size", "tie_word_embeddings"}
        for key in same:
            assert checkpoint.config[key] == mamba2_source.config[key], key
        assert set(checkpoint.tensors) == set(mamba2_source.weights)
        for name, expected in mamba2_source.weights.items():
            assert torch.equal(checkpoint.tensors[name].read(), expected), name


def test_published_configs_have_the_shapes_of_the_published_models() -> None:
    """What mamba_ssm's constructors make of the configs of the published 130m models."""
    mamba = transformers_config(MAMBA_130M, "config.json")
    assert mamba["vocab_size"] == 50280
    assert (mamba["intermediate_size"], mamba["state_size"]) == (1536, 16)
    assert (mamba["time_step_rank"], mamba["conv_kernel"]) == (48, 4)
    assert mamba["tie_word_embeddings"] is True
    mamba2 = transformers_config(MAMBA2_130M, "config.json")
    assert mamba2["vocab_size"] == 50288
    assert (mamba2["num_heads"], mamba2["head_dim"], mamba2["n_groups"]) == (24, 64, 1)
    assert (mamba2["state_size"], mamba2["chunk_size"]) == (128, 256)
    assert mamba2["time_step_limit"] == [0.0, math.inf]


def test_training_options_have_no_effect() -> None:
    trained = {"dt_min": 0.01, "dt_max": 0.2, "use_fast_path": False, "dt_init": "constant"}
    config = {**MAMBA_130M, "ssm_cfg": trained}
    assert transformers_config(config, "c") == transformers_config(MAMBA_130M, "c")


def test_a_newer_layer_keeps_its_name_for_the_families_to_refuse() -> None:
    config = {**MAMBA2_130M, "ssm_cfg": {"layer": "Mamba3", "is_mimo": True}}
    assert transformers_config(config, "config.json")["model_type"] == "mamba3"


REFUSED = [
    ({"rms_norm": False}, "rms_norm"),
    ({"attn_layer_idx": [3]}, "attn_layer_idx"),
    ({"d_intermediate": 2048}, "d_intermediate"),
    ({"d_model": "768"}, "d_model"),
    ({"n_layer": 0}, "n_layer"),
    ({"n_layer": True}, "n_layer"),
    ({"pad_vocab_size_multiple": -8}, "pad_vocab_size_multiple"),
    ({"ssm_cfg": [1]}, "ssm_cfg"),
    ({"ssm_cfg": {"layer": 2}}, "layer"),
    ({"ssm_cfg": {"expand": 0.001}}, "expand"),
    ({"ssm_cfg": {"wavelets": 3}}, "wavelets"),
    ({"ssm_cfg": {"layer": "Mamba2", "headdim": 100}}, "headdim"),
    ({"ssm_cfg": {"layer": "Mamba2", "dt_limit": [1.0, 0.5]}}, "dt_limit"),
    ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 512}}, "d_ssm"),
    ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "rmsnorm"),
    ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate"),
    ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "D_has_hdim"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_what_no_family_has_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SsmExportError) as caught:
        transformers_config({**MAMBA_130M, **change}, "some/config.json")
    assert caught.value.code is errors.BAD_MODEL_CONFIG
    assert named in caught.value.what
    assert caught.value.where == "some/config.json"


def test_a_missing_size_is_named() -> None:
    config = {key: value for key, value in MAMBA_130M.items() if key != "vocab_size"}
    with pytest.raises(SsmExportError) as caught:
        transformers_config(config, "config.json")
    assert "'vocab_size' is missing" in caught.value.what
