"""Checkpoint folders in the layout that transformers reads, written in one rename."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from model import ByteLM, Shape
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CLASSES = {"mamba": "MambaForCausalLM", "mamba2": "Mamba2ForCausalLM"}
LAYOUT_VERSION = "5.23.0"
"""The transformers release whose field names and values are written."""


def config_dict(s: Shape) -> dict[str, Any]:
    """config.json as transformers' save_pretrained writes it. Byte 0 ends a file, and pads."""
    common: dict[str, Any] = {
        "architectures": [CLASSES[s.family]],
        "bos_token_id": 0,
        "conv_kernel": s.conv,
        "dtype": "float16",
        "eos_token_id": 0,
        "expand": s.expand,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "initializer_range": 0.1,
        "layer_norm_epsilon": s.eps,
        "model_type": s.family,
        "num_hidden_layers": s.layers,
        "pad_token_id": 0,
        # the weights were scaled at the start of training; True here makes transformers 5.23
        # divide out_proj again each time it loads the folder
        "rescale_prenorm_residual": False,
        "residual_in_fp32": True,
        "state_size": s.state,
        "tie_word_embeddings": True,
        "time_step_floor": s.dt_floor,
        "time_step_max": s.dt_max,
        "time_step_min": s.dt_min,
        "time_step_rank": s.dt_rank,
        "torch_dtype": "float16",
        "transformers_version": LAYOUT_VERSION,
        "use_bias": False,
        "use_cache": True,
        "use_conv_bias": True,
        "vocab_size": s.vocab,
    }
    if s.family == "mamba":
        own: dict[str, Any] = {
            "intermediate_size": s.inner,
            "time_step_init_scheme": "random",
            "time_step_scale": 1.0,
            "use_associative_scan": True,
            "use_mambapy": False,
        }
    else:
        own = {
            "chunk_size": s.chunk,
            "head_dim": s.head_dim,
            "n_groups": s.groups,
            "num_heads": s.heads,
            # how transformers 5 spells an infinite float in strict JSON
            "time_step_limit": [0.0, {"__float__": "Infinity"}],
        }
    return dict(sorted({**common, **own}.items()))


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The model sizes a config.json describes."""
    family = config["model_type"]
    if family not in CLASSES:
        raise ValueError(f"model_type {family!r} is not one of {sorted(CLASSES)}")
    s = Shape(
        family=family,
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        state=config["state_size"],
        expand=config["expand"],
        conv=config["conv_kernel"],
        dt_rank=config["time_step_rank"],
        vocab=config["vocab_size"],
        eps=config["layer_norm_epsilon"],
    )
    if family == "mamba":
        return s
    return Shape(
        **{
            **vars(s),
            "heads": config["num_heads"],
            "head_dim": config["head_dim"],
            "groups": config["n_groups"],
            "chunk": config["chunk_size"],
        }
    )


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with no merges whose token id is the byte value."""
    # GPT-2's printable stand-ins: a byte that prints stands for itself, others follow U+0100
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    stand_in = {b: chr(b) for b in printable}
    stand_in.update({b: chr(0x100 + k) for k, b in enumerate(others)})
    vocab = {stand_in[b]: b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def rounded(model: ByteLM) -> ByteLM:
    """A float32 copy whose weights went through float16, as the stored ones do."""
    return copy.deepcopy(model).half().float().eval()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON, two spaces deep, with a last newline."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def save_folder(folder: Path, model: ByteLM, training: Mapping[str, Any]) -> int:
    """Write the whole folder next to its place, then rename it; returns its size in bytes."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    config = config_dict(model.shape)
    write_json(new / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(new / "generation_config.json", {**ids, "transformers_version": LAYOUT_VERSION})
    write_json(
        new / "tokenizer_config.json",
        {
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    byte_tokenizer().save(str(new / "tokenizer.json"), pretty=False)
    weights = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(new / "model.safetensors"), metadata={"format": "pt"})
    write_json(new / "training.json", training)
    for path in new.iterdir():
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in new.iterdir())
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return size


def load_folder(folder: Path) -> ByteLM:
    """Load a folder written by `save_folder` as a float32 model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = ByteLM(shape_of(config))
    weights = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({k: v.to(torch.float32) for k, v in weights.items()})
    return model.eval()
