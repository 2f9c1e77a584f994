"""What naming a device changes about an export: precision, plugin kernels, and what is foretold."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ssm_export import errors
from ssm_export.device_formats import RECIPE_FORMATS, formats
from ssm_export.documents.tables import size
from ssm_export.engines._plugins import PLUGIN, plugin_graph
from ssm_export.errors import SsmExportError
from ssm_export.models.base import RecurrentLM, dtype_name
from ssm_export.prediction import Needs, Prediction, predict_needs
from ssm_export.progress import Progress

if TYPE_CHECKING:
    from ssm_export.bundle import Bundle
    from ssm_export.targets import Target

AUTO: Final = "auto"
_NO_KERNELS: Final = (
    errors.KERNEL_UNSUPPORTED,
    errors.KERNEL_COMPILE_FAILED,
    errors.MISSING_PACKAGE,
)
"""Why kernels may be missing that ``auto`` would have compiled."""
_PRECISIONS: Final = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_BODY_BYTES: Final = {"w8a16": 1.03, "w4a16": 0.54}
_VOCABULARY_BYTES: Final = 1.03
"""Bytes of a weight in the recipes that shrink a model most, with its scales; w4a16 keeps the
vocabulary in 8 bits."""


def precision_for(target: Target | None) -> str:
    """The precision of ``--precision auto``: fp16 where a device with units for it is named."""
    return "fp16" if target is not None and "fp16" in target.precisions else "fp32"


def wants_plugins(target: Target) -> bool:
    """Whether a device's engines are built by TensorRT, which runs our kernels as plugins.

    TensorRT-RTX has no plugins; it builds the ``native`` graphs.
    """
    return target.engines[0] == "tensorrt" and target.capability is not None


def why_no_kernels(target: Target) -> str:
    """Why ``--lowering auto`` compiles no kernels for a device; empty where it does."""
    if not wants_plugins(target):
        return f"{target.engines[0]} builds the native graphs"
    if importlib.util.find_spec("triton") is None:
        return (
            "Triton, which compiles kernels, is not installed (pip install ssm-export[kernels]); "
            "the native graphs are built"
        )
    return ""


def compiles_kernels(target: Target | None, lowering: str) -> bool:
    """Whether an export compiles kernels: asked for, or what ``auto`` comes to."""
    if target is None:
        return False
    return lowering == PLUGIN or (lowering == AUTO and not why_no_kernels(target))


def compile_kernels(
    bundle: Bundle, target: Target, lowering: str, progress: Progress
) -> tuple[str, ...]:
    """Add the plugin graph where it is asked for or ``auto`` takes it; gives notes on it.

    What was not asked for by name does not end an export: its failure is a note.

    Raises:
        SsmExportError: what compiling kernels raises.
    """
    if not compiles_kernels(target, lowering):
        return ()
    try:
        made = plugin_graph(bundle, target, progress)
    except SsmExportError as error:
        if lowering == PLUGIN or error.code not in _NO_KERNELS:
            raise
        return (f"no kernels for {target.name}, its engines take the native graphs: {error.what}",)
    note = f"onnx/{made.name}, {made.stat().st_size / 1e3:.0f} kB, has the kernels of {target.name}"
    note += " compiled and not run; on the device, after build: "
    return (note + "ssm-export verify BUNDLE --runner tensorrt",)


def needs_of_model(model: RecurrentLM, *, all_logits: bool) -> Needs:
    """What a prediction needs of a model that is not exported yet."""
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    sizes = model.sizes()
    head = sizes["V"] * sizes["M"]
    itemsize = model.dtype.itemsize
    # Of an embedding that is not the head too, decoding reads one row.
    table = 0 if model.config.tie_word_embeddings else head
    return Needs(
        weights_bytes=weights,
        read_bytes=weights - (table - (sizes["M"] if table else 0)) * itemsize,
        states_per_row=sum(state.bytes_per_row for state in model.states()),
        body_weights=total - table - head,
        head_weights=head,
        inner=sizes["D"],
        vocabulary=sizes["V"],
        precision=_PRECISIONS[dtype_name(model.dtype)],
        every_logits=all_logits,
    )


def foretell(needs: Needs, target: Target, lowering: str) -> tuple[Prediction, tuple[str, ...]]:
    """The prediction at batch 1, before anything is traced, and what to know about the lowering.

    Raises:
        SsmExportError: ``TOO_LITTLE_MEMORY`` where weights and states alone are more than the
            device has, with what would fit.
    """
    found = predict_needs(needs, target)
    if found.fits is not False:
        why = why_no_kernels(target) if lowering == AUTO else ""
        return found, (f"no kernels are compiled for {target.name}: {why}",) if why else ()
    raise SsmExportError(
        errors.TOO_LITTLE_MEMORY,
        f"predicted: {size(needs.weights_bytes)} of {needs.precision} weights and "
        f"{size(needs.states_per_row)} of states do not fit {target.name}",
        where="--target",
        why=found.notes[0],
        fix=_what_would_fit(needs, target),
    )


def _what_would_fit(needs: Needs, target: Target) -> str:
    """Precisions and recipes that shrink the model enough, cheapest change first."""
    total = needs.body_weights + needs.head_weights
    table = needs.weights_bytes - needs.read_bytes
    if needs.precision == "fp32":
        half = replace(needs, weights_bytes=needs.weights_bytes // 2, precision="fp16")
        if predict_needs(half, target).fits is not False:
            return f"--precision fp16 (predicted {size(half.weights_bytes)} of weights)"
    able = set(formats(target))
    for recipe in _BODY_BYTES:
        if not set(RECIPE_FORMATS[recipe]) <= able:
            continue
        vocabulary = needs.head_weights * (2 if table > needs.head_weights else 1)
        small = _BODY_BYTES[recipe] * needs.body_weights + _VOCABULARY_BYTES * vocabulary
        shrunk = replace(needs, weights_bytes=int(small))
        if predict_needs(shrunk, target).fits is not False:
            return (
                f"export without --target, then ssm-export quantize BUNDLE -o SMALL --recipe "
                f"{recipe} --target {target.name} (predicted {size(small)} of weights)"
            )
    return (
        f"take a device with more memory (ssm-export list targets) or a smaller model: even "
        f"{total / 1e9:.1f}e9 weights of 4 bits do not fit"
    )
