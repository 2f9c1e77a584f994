"""One entry to every lowering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError

if TYPE_CHECKING:
    import onnx_ir as ir

LOWERINGS: Final = ("native", "ort")
"""What :func:`lower` can make of a canonical graph."""


@dataclass(frozen=True)
class Lowered:
    """A lowered graph and what was done to get it.

    Attributes:
        model: the graph; its weights are the external tensors of the canonical graph.
        counts: what was done, such as ``inlined SelectiveScan``, to how many times.
        notes: why a call was not rewritten to a fused operator, one sentence each.
    """

    model: ir.Model
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def lower(model: ir.Model, lowering: str) -> Lowered:
    """Lower a canonical graph for a runtime.

    Args:
        model: a graph with bodies (:func:`~ssm_export.lowering.attach_bodies`); it is not changed,
            and its external weights are not read.
        lowering: ``native`` (standard operators only) or ``ort`` (ONNX Runtime's fused operators
            where they fit and measure faster).

    Raises:
        SsmExportError: ``BAD_OPTION`` for an unknown lowering, ``LOWERING_FAILED`` when the graph
            cannot be lowered.
    """
    if lowering == "native":
        from ssm_export.lowering import native, tied_table

        copy = copy_of(model)
        tied_table.store_once(copy.graph)
        counts = native.inline(copy)
        return Lowered(copy, {f"inlined {name}": count for name, count in counts.items()})
    if lowering == "ort":
        from ssm_export.lowering import ort

        return ort.lower_for_onnxruntime(copy_of(model))
    raise SsmExportError(
        errors.BAD_OPTION,
        f"'{lowering}' is no lowering",
        where="--lowering",
        fix=f"use one of {', '.join(LOWERINGS)}",
    )


def copy_of(model: ir.Model) -> ir.Model:
    """A copy whose values can be renamed without renaming tensors that both graphs hold."""
    copy = model.clone()
    for nodes in (copy.graph.all_nodes(), *(f.all_nodes() for f in copy.functions.values())):
        for node in nodes:
            for value in node.outputs:
                value.const_value = None
    return copy
