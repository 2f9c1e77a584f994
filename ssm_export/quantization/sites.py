"""The places of a canonical graph that can be quantized, under the names that recipes use.

A linear layer is called by its module path (``backbone.layers.3.mixer.in_proj``), the vocabulary by
that of its weight (``backbone.embeddings``, which is the head too where the two are tied), and an
input of a scan by the module that holds the scan (``backbone.layers.3.mixer.scan.x``). dt, A, the
short convolution and the state are no sites: they stay floating point.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops.spec import DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

_LAYER: Final = re.compile(r"\.layers\.(\d+)\.")
_WEIGHT: Final = ".weight"
_SCAN_PORTS: Final = {
    "SelectiveScan": {"x": 0, "B": 3, "C": 4},
    "SsdScan": {"x": 0, "B": 3, "C": 4},
}
"""Scan operator to the name and the position of its inputs that may be quantized."""

GATHER: Final = "Gather"
MATMUL: Final = "MatMul"
GEMM: Final = "Gemm"


@dataclass(frozen=True)
class WeightUse:
    """A node that reads a weight.

    Attributes:
        node: its name.
        op: ``MatMul`` with weight (K,N), ``Gemm`` with weight (N,K), or ``Gather`` of rows (V,M).
        activation: the value that it multiplies; of a Gather the ids.
    """

    node: str
    op: str
    activation: str


@dataclass(frozen=True)
class WeightSite:
    """A weight matrix and the nodes that read it.

    Attributes:
        name: the module's path.
        weight: name of the initializer.
        shape: (K,N) for a linear layer, (V,M) for a vocabulary.
        layer: its layer; -1 for a vocabulary.
        uses: one, or two where embedding and head share the weight.
    """

    name: str
    weight: str
    shape: tuple[int, int]
    layer: int
    uses: tuple[WeightUse, ...]

    @property
    def is_vocabulary(self) -> bool:
        """Whether it is an embedding or a head: one row per token of the vocabulary."""
        return any(use.op != MATMUL for use in self.uses)

    @property
    def output_axis(self) -> int:
        """The axis that the results run along: N, or V."""
        return 0 if self.is_vocabulary else 1

    @property
    def input_axis(self) -> int:
        """The axis that a product sums over: K, or M."""
        return 1 - self.output_axis

    @property
    def product(self) -> WeightUse | None:
        """The use that is a matrix product; None for an embedding of its own."""
        return next((use for use in self.uses if use.op != GATHER), None)


@dataclass(frozen=True)
class ScanSite:
    """A floating-point input of a scan.

    Attributes:
        name: such as ``backbone.layers.3.mixer.scan.x``.
        port: ``x``, ``B`` or ``C``.
        value: the tensor that the scan reads.
        shape: its axes after batch and time: (D,) or (H,P) for x, (N,) or (G,N) for B and C.
        groups: G, the number of groups of heads; 1 for Mamba-1.
        layer: its layer.
        node: name of the scan's node.
    """

    name: str
    port: str
    value: str
    shape: tuple[int, ...]
    groups: int
    layer: int
    node: str


@dataclass(frozen=True)
class Sites:
    """Every site of a model, in graph order."""

    weights: tuple[WeightSite, ...]
    scans: tuple[ScanSite, ...]

    def names(self) -> list[str]:
        """The names, as recipes match them."""
        return [site.name for site in self.weights] + [site.name for site in self.scans]


def find_sites(model: ir.Model) -> Sites:
    """Find every site of a canonical graph.

    Raises:
        SsmExportError: ``GRAPH_INVALID`` when there is none, or ``ALREADY_QUANTIZED`` when the
            graph has quantized weights.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph):
        raise already_quantized()
    weights: dict[str, list[WeightUse]] = {}
    scans: list[ScanSite] = []
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type in _SCAN_PORTS:
            scans += _scan_sites(node)
        elif node.domain == "" and (found := _weight_of(node, model)):
            weight, activation = found
            use = WeightUse(_name(node), node.op_type, activation)
            weights.setdefault(weight, []).append(use)
    sites = [_weight_site(model, name, uses) for name, uses in weights.items()]
    if not sites:
        raise SsmExportError(
            errors.GRAPH_INVALID,
            "the graph has no linear layer with a weight of its own",
            fix="quantize a bundle that ssm-export export made",
        )
    return Sites(tuple(sites), tuple(scans))


def already_quantized(where: str = "") -> SsmExportError:
    """The error for a bundle whose weights are quantized."""
    return SsmExportError(
        errors.ALREADY_QUANTIZED,
        "its weights are quantized already, and what rounding lost does not come back",
        where=where,
        fix="quantize the float bundle that it was made from",
    )


def layer_of(name: str) -> int:
    """The layer in a name such as ``backbone.layers.3.mixer``; -1 where there is none."""
    found = _LAYER.search(f"{name}.")
    return int(found[1]) if found else -1


def product_sites(sites: Iterable[WeightSite]) -> list[WeightSite]:
    """Those that are read by a matrix product."""
    return [site for site in sites if site.product is not None]


def _weight_of(node: ir.Node, model: ir.Model) -> tuple[str, str] | None:
    """The weight that a node reads, and its other input."""
    position = {MATMUL: 1, GEMM: 1, GATHER: 0}.get(node.op_type)
    if position is None or len(node.inputs) < 2:
        return None
    weight, other = node.inputs[position], node.inputs[1 - position]
    if weight is None or other is None or weight.name not in model.graph.initializers:
        return None
    assert weight.name is not None and other.name is not None
    if not weight.name.endswith(_WEIGHT) or weight.shape is None or len(weight.shape) != 2:
        return None
    if node.op_type == GEMM and not node.attributes["transB"].as_int():
        return None
    return weight.name, other.name


def _weight_site(model: ir.Model, weight: str, uses: list[WeightUse]) -> WeightSite:
    shape = model.graph.initializers[weight].shape
    assert shape is not None
    rows, columns = (int(size) for size in shape)  # type: ignore[arg-type]  # weights are static
    name = weight.removesuffix(_WEIGHT)
    return WeightSite(name, weight, (rows, columns), layer_of(name), tuple(uses))


def _scan_sites(node: ir.Node) -> list[ScanSite]:
    name = _name(node)
    module = name.rpartition("/")[0] or name
    sites = []
    shared = node.inputs[_SCAN_PORTS[node.op_type]["B"]]
    assert shared is not None and shared.shape is not None
    groups = int(shared.shape[2]) if len(shared.shape) == 4 else 1  # type: ignore[arg-type]
    for port, position in _SCAN_PORTS[node.op_type].items():
        value = node.inputs[position]
        assert value is not None and value.name is not None and value.shape is not None
        shape = tuple(int(size) for size in list(value.shape)[2:])  # type: ignore[arg-type]
        site = f"{module}.scan.{port}"
        sites.append(ScanSite(site, port, value.name, shape, groups, layer_of(module), name))
    return sites


def _name(node: ir.Node) -> str:
    assert node.name is not None
    return node.name
