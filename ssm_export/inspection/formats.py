"""In which types a graph and a quantized bundle hold their numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ssm_export.bundle import Bundle

if TYPE_CHECKING:
    import onnx

FLOAT: Final = "float"
_BITS: Final = {
    "INT4": 4,
    "UINT4": 4,
    "FLOAT4E2M1": 4,
    "INT8": 8,
    "UINT8": 8,
    "BOOL": 8,
    "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8,
    "FLOAT8E5M2": 8,
    "FLOAT8E5M2FNUZ": 8,
    "FLOAT8E8M0": 8,
    "FLOAT16": 16,
    "BFLOAT16": 16,
    "INT16": 16,
    "UINT16": 16,
    "DOUBLE": 64,
    "INT64": 64,
    "UINT64": 64,
}
"""ONNX type to the bits of a number; 32 for what is not here."""


@dataclass(frozen=True)
class TypeFacts:
    """Tensors of one type: how many there are, and their bytes."""

    count: int
    bytes: int


def initializer_types(tensors: Iterable[onnx.TensorProto]) -> dict[str, TypeFacts]:
    """ONNX type in lower case to the weights and constants that have it, the most bytes first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        kind = _type(tensor)
        counts[kind] += 1
        sizes[kind] += tensor_bytes(tensor)
    return {
        kind: TypeFacts(counts[kind], size)
        for kind, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    }


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor as files store it, from its type and shape; two 4-bit numbers in a byte."""
    return -(-math.prod(tensor.dims) * _BITS.get(_type(tensor).upper(), 32) // 8)


def quantization_facts(bundle: Bundle) -> dict[str, Any]:
    """What the manifest says of a quantized bundle, and the bytes of each format in its graph.

    Returns:
        ``recipe``, ``target``, ``weights`` and ``inputs`` (format to ``count`` and, for weights,
        ``bytes`` with their scales; ``float`` is what was left), ``rotated`` inputs,
        ``state_dtype``, ``lost_bits`` and what it was measured on; empty for a float bundle.
    """
    from ssm_export.engines._graphs import load_graph

    manifest = bundle.manifest
    said = manifest.quantization
    if not said:
        return {}
    model = load_graph(bundle.graph_path("prefill", "canonical"))
    size_of = {tensor.name: tensor_bytes(tensor) for tensor in model.graph.initializer}
    every = sum(size_of.values())
    weights: dict[str, dict[str, int]] = {}
    for site, entry in said.get("weights", {}).items():
        own = f"{site}.weight."
        found = weights.setdefault(_stored(entry), {"count": 0, "bytes": 0})
        found["count"] += 1
        found["bytes"] += sum(size for name, size in size_of.items() if name.startswith(own))
    quantized = sum(found["bytes"] for found in weights.values())
    inputs = said.get("activations", {}).values()
    return {
        "recipe": said.get("recipe", ""),
        "target": said.get("target", ""),
        "weights": dict(sorted(weights.items())),
        "left_float_bytes": every - quantized,
        "inputs": dict(Counter(e["scheme"] for e in inputs if e["scheme"] != FLOAT)),
        "rotated": sum(1 for entry in inputs if entry["rotate"]),
        "state_dtype": manifest.state_dtype,
        **{key: said.get(key) for key in ("lost_bits", "kl_bits", "top1", "evaluated_on")},
    }


def _stored(entry: dict[str, Any]) -> str:
    """``int4/128`` for int4 in blocks of 128."""
    return f"{entry['scheme']}/{entry['block']}" if entry["block"] else str(entry["scheme"])


def _type(tensor: onnx.TensorProto) -> str:
    import onnx

    return onnx.TensorProto.DataType.Name(tensor.data_type).lower()
