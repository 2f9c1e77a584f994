"""The ``ort`` lowering: ONNX Runtime's fused operators, or bodies that suit its CPU best."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from ssm_export.lowering import native, ort_bodies, ort_fp4, ort_quantized
from ssm_export.lowering.bodies import call_key, call_of, form_of, spec_of
from ssm_export.lowering.lower import Lowered
from ssm_export.ops import _onnx
from ssm_export.ops.spec import DOMAIN

_OVERLOAD: Final = "onnxruntime"


def lower_for_onnxruntime(model: ir.Model) -> Lowered:
    """Lower a canonical graph for ONNX Runtime, in place.

    A call whose operator has a body in :mod:`~ssm_export.lowering.ort_bodies` gets that one; every
    other call keeps its own. Notes say why no fused operator is used. All bodies are then inlined,
    and quantized weights are packed for ONNX Runtime's operators
    (:func:`~ssm_export.lowering.ort_quantized.repack`).
    """
    replaced: dict[str, int] = {}
    notes: dict[str, None] = {}
    overloads: dict[tuple[object, ...], str] = {}
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain != DOMAIN:
            continue
        spec = spec_of(node)
        form = form_of(node, model)
        call = call_of(node, spec, form)
        body = ort_bodies.BODIES.get((spec.name, form))
        if note := ort_bodies.NOTES.get((spec.name, form)):
            notes[note] = None
        if body is None:
            continue
        overload = _overload(overloads, (spec.name, form, call_key(spec.name, call)))
        node.overload = overload
        if node.op_identifier() not in model.functions:
            function = _onnx.function(spec, form, call, overload, body, ort_bodies.DOMAINS)
            model.functions[function.identifier()] = function
        name = f"{spec.name} to {ort_bodies.BECOMES[spec.name]}"
        replaced[name] = replaced.get(name, 0) + 1
    inlined = native.inline(model, ort_bodies.DOMAINS)
    counts = dict(replaced)
    for name, count in inlined.items():
        own = count - sum(n for key, n in replaced.items() if key.startswith(f"{name} to "))
        if own:
            counts[f"inlined {name}"] = own
    if turned := ort_fp4.as_integers(model.graph):
        counts["FP4 to int8 codes"] = turned
    counts |= ort_quantized.repack(model)
    return Lowered(model, counts, tuple(notes))


def _overload(overloads: dict[tuple[object, ...], str], key: tuple[object, ...]) -> str:
    return overloads.setdefault(key, f"{_OVERLOAD}_{len(overloads) + 1}")
