"""Checkpoint tensors → parameters of a model, checked, rounded and streamed one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from ssm_export import errors
from ssm_export.checkpoints import Checkpoint, LazyTensor, without_tied_head
from ssm_export.errors import SsmExportError
from ssm_export.external import Stored, write_tensors
from ssm_export.layers.stored import ParameterSource, parameter_sources
from ssm_export.progress import SILENT, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from ssm_export.models.base import RecurrentLM

_NAMES_SHOWN: Final = 5


class Weights:
    """The parameters of a model as a checkpoint gives them.

    Every parameter is made from one stored tensor, which is read when it is asked for and not kept.
    Opening checks names and shapes, so a mismatch is found before any work is done:
    ``SHAPE_MISMATCH``, ``MISSING_TENSORS`` or ``UNEXPECTED_TENSORS``.

    Args:
        model: the model, whose parameters may be fake; they say shapes and types.
        checkpoint: where the tensors are.
    """

    def __init__(self, model: RecurrentLM, checkpoint: Checkpoint) -> None:
        tensors = checkpoint.tensors
        if model.config.tie_word_embeddings:
            tensors = without_tied_head(tensors)
        self.sources = {source.parameter: source for source in parameter_sources(model)}
        self.tensors = tensors
        _check(self.sources.values(), tensors, checkpoint)

    def read(self, parameter: str) -> torch.Tensor:
        """One parameter, contiguous, rounded to its type in the model.

        ``NOT_FINITE`` when the stored tensor, or what becomes of it, holds NaN or Inf.
        """
        source = self.sources[parameter]
        stored = self.tensors[source.tensor].read()
        value = source.transform.apply(stored).to(source.dtype).contiguous()
        if not bool(torch.isfinite(value).all()):
            finite = bool(torch.isfinite(stored).all())
            name = str(source.dtype).removeprefix("torch.")
            raise SsmExportError(
                errors.NOT_FINITE,
                f"'{source.tensor}' has values beyond the range of {name}"
                if finite
                else f"'{source.tensor}' holds NaN or Inf",
                where=self.tensors[source.tensor].where,
                fix="export with --precision bf16 or fp32"
                if finite
                else "train or download the checkpoint again",
            )
        return value

    def load_into(
        self, module: torch.nn.Module, prefix: str, dtype: torch.dtype | None = None
    ) -> None:
        """Fill a real module's parameters; ``prefix`` is its path in the model.

        With ``dtype`` the rounded values are widened to it.
        """
        for name, parameter in module.named_parameters():
            value = self.read(f"{prefix}{name}")
            parameter.data = value.to(dtype) if dtype is not None else value


def write_weights(
    weights: Weights,
    graphs: Iterable[ir.Model],
    path: Path,
    progress: Progress = SILENT,
) -> None:
    """Write every parameter into one file and point the graphs' initializers into it.

    Args:
        weights: the parameters.
        graphs: graphs that lie in the folder of ``path``; initializers without data are taken to
            be parameters.
        path: the file to write.
        progress: shows bytes.
    """
    tensors = write_tensors(
        (_stored(weights, source) for source in weights.sources.values()), path, progress
    )
    for graph in graphs:
        for name, initializer in graph.graph.initializers.items():
            if initializer.const_value is None:
                initializer.const_value = tensors[name]


def _stored(weights: Weights, source: ParameterSource) -> Stored:
    """A parameter as it is written; it is read when its turn comes."""

    def read() -> np.ndarray:
        value = weights.read(source.parameter)
        content: np.ndarray = value.reshape(-1).view(torch.uint8).numpy()
        return content

    return Stored(source.parameter, _onnx_type(source.dtype), tuple(source.shape), read)


def _onnx_type(dtype: torch.dtype) -> ir.DataType:
    import onnx_ir as ir

    return {
        torch.float32: ir.DataType.FLOAT,
        torch.float16: ir.DataType.FLOAT16,
        torch.bfloat16: ir.DataType.BFLOAT16,
    }[dtype]


def _check(
    sources: Iterable[ParameterSource], tensors: Mapping[str, LazyTensor], checkpoint: Checkpoint
) -> None:
    """Compare names and shapes with what the model needs."""
    needed = {source.tensor: source for source in sources}
    missing = [name for name in needed if name not in tensors]
    where = str(checkpoint.path)
    for name, source in needed.items():
        if name in tensors and tuple(tensors[name].shape) != source.stored_shape:
            raise SsmExportError(
                errors.SHAPE_MISMATCH,
                f"'{name}' is {tuple(tensors[name].shape)}, expected {source.stored_shape}",
                where=tensors[name].where,
                why=f"config.json says {checkpoint.model_type} with other sizes than the weights",
                fix="take config.json and weights from the same checkpoint",
            )
    if missing:
        raise SsmExportError(
            errors.MISSING_TENSORS,
            f"{len(missing)} of {len(needed)} weights are missing: {_some(missing)}",
            where=where,
            why=f"the weights may be of another family than {checkpoint.model_type}",
            fix="check model_type and num_hidden_layers in config.json",
        )
    unexpected = [name for name in tensors if name not in needed]
    if unexpected:
        raise SsmExportError(
            errors.UNEXPECTED_TENSORS,
            f"the model has no place for {len(unexpected)} weights: {_some(unexpected)}",
            where=where,
            why="config.json may describe a smaller model, or one without these parts",
            fix="check num_hidden_layers and the use_*bias keys in config.json",
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
