"""Folders that transformers saved, in each of its weight formats."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_sources import Source

from ssm_export import errors
from ssm_export.checkpoints import Checkpoint, open_checkpoint, without_tied_head
from ssm_export.errors import SsmExportError


def assert_holds(checkpoint: Checkpoint, weights: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint.tensors) == set(weights)
    for name, expected in weights.items():
        lazy = checkpoint.tensors[name]
        assert lazy.name == name
        assert lazy.shape == tuple(expected.shape)
        assert lazy.dtype == str(expected.dtype).removeprefix("torch.")
        tensor = lazy.read()
        assert tensor.is_contiguous()
        assert torch.equal(tensor, expected), name


def copy_config(source: Source, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(source.folder / "config.json", folder)
    return folder


def test_single_safetensors(source: Source) -> None:
    with open_checkpoint(source.folder) as checkpoint:
        assert checkpoint.layout == "transformers"
        assert checkpoint.model_type == source.config["model_type"]
        assert checkpoint.config["hidden_size"] == source.config["hidden_size"]
        assert_holds(checkpoint, source.weights)


def test_sharded_safetensors(sharded: Source) -> None:
    with open_checkpoint(str(sharded.folder)) as checkpoint:
        assert_holds(checkpoint, sharded.weights)
        assert len(checkpoint.weights_files) >= 3
        wheres = {lazy.where for lazy in checkpoint.tensors.values()}
        assert wheres == {str(path) for path in checkpoint.weights_files}


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file(source: Source, tmp_path: Path, zipped: bool) -> None:
    folder = copy_config(source, tmp_path)
    file = folder / "pytorch_model.bin"
    torch.save(source.weights, file, _use_new_zipfile_serialization=zipped)
    with open_checkpoint(folder) as checkpoint:
        assert_holds(checkpoint, source.weights)


def test_sharded_torch_files(source: Source, tmp_path: Path) -> None:
    folder = copy_config(source, tmp_path)
    names = sorted(source.weights)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: source.weights[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with open_checkpoint(folder) as checkpoint:
        assert_holds(checkpoint, source.weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("writer", ["safetensors", "bin"])
def test_types_are_kept(
    mamba_source: Source, tmp_path: Path, dtype: torch.dtype, writer: str
) -> None:
    from safetensors.torch import save_file

    folder = copy_config(mamba_source, tmp_path)
    weights = {name: value.to(dtype) for name, value in mamba_source.weights.items()}
    if writer == "safetensors":
        save_file(weights, folder / "model.safetensors")
    else:
        torch.save(weights, folder / "pytorch_model.bin")
    with open_checkpoint(folder) as checkpoint:
        assert_holds(checkpoint, weights)


def test_scalars_and_empty_tensors(mamba_source: Source, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = copy_config(mamba_source, tmp_path)
    weights = {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    save_file(weights, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert_holds(checkpoint, weights)


def test_views_are_read_as_what_they_show(mamba_source: Source, tmp_path: Path) -> None:
    folder = copy_config(mamba_source, tmp_path)
    base = torch.arange(24.0).reshape(4, 6)
    torch.save({"a": base.t(), "b": base[1:3, ::2]}, folder / "pytorch_model.bin")
    with open_checkpoint(folder) as checkpoint:
        assert_holds(checkpoint, {"a": base.t(), "b": base[1:3, ::2]})


def test_a_read_tensor_is_the_callers(source: Source) -> None:
    with open_checkpoint(source.folder) as checkpoint:
        lazy = checkpoint.tensors["backbone.norm_f.weight"]
        lazy.read().fill_(float("nan"))
        again = lazy.read()
    assert torch.equal(again, source.weights["backbone.norm_f.weight"])


def test_a_read_tensor_outlives_the_checkpoint(mamba_source: Source, tmp_path: Path) -> None:
    folder = copy_config(mamba_source, tmp_path)
    torch.save(mamba_source.weights, folder / "pytorch_model.bin")
    name = "backbone.layers.1.mixer.in_proj.weight"
    with open_checkpoint(folder) as checkpoint:
        tensor = checkpoint.tensors[name].read()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert torch.equal(tensor, mamba_source.weights[name])


def test_safetensors_are_preferred_to_pickles(mamba_source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(mamba_source.folder, folder)
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with open_checkpoint(folder) as checkpoint:
        assert [path.name for path in checkpoint.weights_files] == ["model.safetensors"]


def test_infinity_is_a_float_in_either_spelling(mamba2_source: Source, tmp_path: Path) -> None:
    assert mamba2_source.config["time_step_limit"][1] != math.inf  # transformers 5's spelling
    with open_checkpoint(mamba2_source.folder) as checkpoint:
        assert list(checkpoint.config["time_step_limit"]) == [0.0, math.inf]
    folder = tmp_path / "older"
    shutil.copytree(mamba2_source.folder, folder)
    config = {**mamba2_source.config, "time_step_limit": [0.0, math.inf]}
    (folder / "config.json").write_text(json.dumps(config))  # json writes the bare Infinity
    assert "Infinity]" in (folder / "config.json").read_text().replace("\n", "")
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.config["time_step_limit"]) == [0.0, math.inf]


def test_a_model_saved_without_its_head(mamba_source: Source, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = copy_config(mamba_source, tmp_path)
    bare = {name.removeprefix("backbone."): t for name, t in mamba_source.weights.items()}
    save_file(bare, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert_holds(checkpoint, mamba_source.weights)


def test_a_head_stored_beside_the_embeddings_it_is_tied_to(
    mamba_source: Source, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    folder = copy_config(mamba_source, tmp_path)
    embeddings = mamba_source.weights["backbone.embeddings.weight"]
    both = {**mamba_source.weights, "lm_head.weight": embeddings.clone()}
    save_file(both, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert_holds(checkpoint, both)
        tied = without_tied_head(checkpoint.tensors)
    assert "lm_head.weight" not in tied
    assert torch.equal(tied["backbone.embeddings.weight"].read(), embeddings)


def test_a_head_that_cannot_be_tied(mamba_source: Source, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = copy_config(mamba_source, tmp_path)
    other = mamba_source.weights["backbone.embeddings.weight"].clone()
    other[-1, -1] += 1
    save_file({**mamba_source.weights, "lm_head.weight": other}, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        tied = without_tied_head(checkpoint.tensors)
        with pytest.raises(SsmExportError) as caught:
            tied["backbone.embeddings.weight"].read()
    assert caught.value.code is errors.SHAPE_MISMATCH
    assert "tie_word_embeddings" in caught.value.fix


def test_weights_hash_is_over_the_files_in_order(sharded: Source) -> None:
    files = sorted(sharded.folder.glob("*.safetensors"))
    expected = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    with open_checkpoint(sharded.folder) as checkpoint:
        assert checkpoint.weights_sha256() == expected


def test_side_files(mamba_source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "with-tokenizer"
    shutil.copytree(mamba_source.folder, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt", "vocab.json"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("not wanted")
    (folder / "training_args.bin").write_bytes(b"not wanted")
    with open_checkpoint(folder) as checkpoint:
        assert [path.name for path in checkpoint.side_files] == [
            "config.json",
            "generation_config.json",
            "merges.txt",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ]
