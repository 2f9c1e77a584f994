"""Weights that a lowering has packed in a way of its own, against the codes they were made of."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ssm_export.bundle import Bundle
from ssm_export.lowering import lower


def packed_differences(bundle: Bundle, lowering: str) -> list[str]:
    """Names of the packed tensors of a lowering that are not what its canonical graphs give.

    Args:
        bundle: an open bundle.
        lowering: whose graphs; one that packs nothing has no differences.
    """
    if lowering not in bundle.manifest.packed_weights:
        return []
    found: dict[str, None] = {}
    done: set[str] = set()
    for form in bundle.manifest.graphs:
        if lowering not in bundle.manifest.graphs[form]:
            continue
        stored = ir.load(bundle.graph_path(form, lowering)).graph.initializers
        made = lower(ir.load(bundle.graph_path(form, "canonical")), lowering).model.graph
        for name in sorted(stored.keys() | made.initializers.keys()):
            if name in done:
                continue
            done.add(name)
            if not _same(stored.get(name), made.initializers.get(name)):
                found[name] = None
    return list(found)


def _same(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both are there and hold the same bytes."""
    if one is None or other is None or one.const_value is None or other.const_value is None:
        return False
    first, second = one.const_value, other.const_value
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return np.array_equal(_bytes(first), _bytes(second))


def _bytes(tensor: ir.TensorProtocol) -> np.ndarray:
    return np.frombuffer(tensor.tobytes(), np.uint8)
