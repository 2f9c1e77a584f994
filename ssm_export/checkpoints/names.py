"""Tensor names: every layout's spelling to the one that transformers uses now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ssm_export import errors
from ssm_export.checkpoints.checkpoint import LazyTensor
from ssm_export.errors import SsmExportError

if TYPE_CHECKING:
    import torch

BACKBONE = "backbone."
EMBEDDINGS = "backbone.embeddings.weight"
HEAD = "lm_head.weight"


def with_transformers_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors under transformers' names.

    mamba_ssm, and transformers before 4.40, write ``embedding`` where it now is ``embeddings``. A
    model that was saved without its head has names that begin with ``layers.``.
    """
    bare = any(name.startswith("layers.") for name in tensors)
    renamed = {}
    for old, tensor in tensors.items():
        name = BACKBONE + old if bare and old != HEAD else old
        if name.startswith("backbone.embedding."):
            name = name.replace("backbone.embedding.", "backbone.embeddings.", 1)
        renamed[name] = replace(tensor, name=name)
    return renamed


def without_tied_head(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors that a model with tied embeddings needs: a head that repeats them is left out.

    Tied weights may be stored once or twice. Where they are stored twice, reading the embeddings
    also compares the two: ``SHAPE_MISMATCH`` when they differ, since the config cannot be right.
    """
    kept = dict(tensors)
    head = kept.pop(HEAD, None)
    embeddings = kept.get(EMBEDDINGS)
    if head is None or embeddings is None:
        return dict(tensors)
    kept[EMBEDDINGS] = replace(embeddings, reader=partial(_read_tied, embeddings, head))
    return kept


def _read_tied(embeddings: LazyTensor, head: LazyTensor) -> torch.Tensor:
    import torch

    weight = embeddings.read()
    same = (embeddings.shape, embeddings.dtype) == (head.shape, head.dtype)
    if not same or not torch.equal(weight.view(torch.uint8), head.read().view(torch.uint8)):
        raise SsmExportError(
            errors.SHAPE_MISMATCH,
            f"the config ties '{HEAD}' {head.shape} to '{EMBEDDINGS}' {embeddings.shape}, and the "
            "file holds two different tensors",
            where=head.where,
            fix='set "tie_word_embeddings" ("tie_embeddings" in mamba_ssm) to false in config.json',
        )
    return weight
