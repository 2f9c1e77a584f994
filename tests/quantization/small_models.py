"""A tiny bundle with a plan for it, and its graphs run without any optimization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_evaluator import GatherElements

from ssm_export.bundle import Bundle
from ssm_export.lowering import attach_bodies
from ssm_export.quantization.calibration import Statistics, Work, collect
from ssm_export.quantization.plan import Plan, make_plan, rotations, weight_keys
from ssm_export.quantization.recipe import FLOAT, Rule, match, read_recipe
from ssm_export.quantization.sites import Sites, find_sites
from ssm_export.quantization.stream import LayerStream
from ssm_export.quantization.tensors import Tensors

BLOCKS = (16, 32, 64, 128)
SHAPE = (4, 40)


@dataclass(frozen=True)
class Planned:
    """A plan of a recipe, and what it was made from."""

    bundle: Bundle
    sites: Sites
    rules: Mapping[str, Rule]
    plan: Plan
    tensors: Tensors
    statistics: Statistics


class Small:
    """A tiny float bundle and calibration rows for it."""

    def __init__(self, path: Path, work: Path) -> None:
        self.bundle = Bundle.open(path)
        self.work = work
        size = self.bundle.manifest.sizes["V"]
        self.rows = np.random.default_rng(3).integers(0, size, SHAPE)

    def graph(self, form: str = "prefill") -> ir.Model:
        return ir.load(self.bundle.graph_path(form, "canonical"))

    @cached_property
    def sites(self) -> Sites:
        return find_sites(self.graph())

    def rules(self, recipe: str) -> dict[str, Rule]:
        return match(read_recipe(recipe), self.sites.names(), self.bundle.manifest.family)

    def planned(self, recipe: str | Mapping[str, Rule]) -> Planned:
        """The plan of a recipe by name, or of rules; calibrated on the rows."""
        rules = self.rules(recipe) if isinstance(recipe, str) else recipe
        precision = self.bundle.manifest.precision
        tensors = Tensors(self.graph(), self.sites, precision)
        keys, notes = weight_keys(rules, self.sites, BLOCKS)
        turned = rotations(rules, self.sites)
        wanted = {(s.value, 0): s.layer for s in self.sites.scans if s.name in rules}
        for site in self.sites.weights:
            if site.name in rules and rules[site.name].activations != FLOAT:
                assert site.product is not None
                wanted[site.product.activation, turned.get(site.name, 0)] = site.layer
        statistics = Statistics("", "", "", self.rows.size)
        collect(
            LayerStream(self.bundle, self.rows),
            statistics,
            [(value, turn, layer) for (value, turn), layer in wanted.items()],
            [key for key in keys.values() if key.rounding == "gptq"],
            tensors,
            Work(self.work, {"rules": str(rules)}),
        )
        plan = make_plan(rules, self.sites, keys, statistics, precision, notes)
        return Planned(self.bundle, self.sites, rules, plan, tensors, statistics)


def self_contained(model: ir.Model, form: str) -> onnx.ModelProto:
    """A canonical graph with its weights and the bodies of its calls inside."""
    model = attach_bodies(model, form)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        if not isinstance(value.const_value, ir.Tensor):
            content = value.const_value
            value.const_value = ir.tensor(content.numpy(), dtype=content.dtype, name=value.name)
    return ir.to_proto(model)


def feeds_of(bundle: Bundle, form: str, seed: int = 1, ragged: bool = False) -> dict:
    """Inputs of a canonical graph, the states random and small."""
    rng = np.random.default_rng(seed)
    batch, tokens = 2, 7 if form == "prefill" else 1
    feeds = {"input_ids": rng.integers(0, bundle.manifest.sizes["V"], (batch, tokens))}
    if ragged:
        feeds["sequence_lengths"] = np.array([tokens, max(1, tokens - 2)], np.int32)
    for state in bundle.manifest.states:
        shape = [batch if isinstance(size, str) else size for size in state.shape]
        feeds[state.name_in] = 0.1 * rng.normal(size=shape).astype(np.float32)
    return feeds


def run_plain(proto: onnx.ModelProto, feeds: dict, outputs: list[str] | None = None) -> list:
    """ONNX Runtime, no node fused or folded."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    known = {port.name for port in session.get_inputs()}
    return session.run(outputs, {name: a for name, a in feeds.items() if name in known})


def run_reference(
    proto: onnx.ModelProto, feeds: dict, operators: list[type[OpRun]] | None = None
) -> list[np.ndarray]:
    """ONNX's own evaluator."""
    known = {port.name for port in proto.graph.input}
    evaluator = ReferenceEvaluator(proto, new_ops=[GatherElements, *(operators or [])])
    return evaluator.run(None, {name: a for name, a in feeds.items() if name in known})


def worst(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The largest relative L2 distance of two lists of arrays."""
    distances = []
    for one, other in zip(got, want, strict=True):
        other = other.astype(np.float64)
        distances.append(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-30))
    return float(max(distances))


def planted(
    small: Small, recipe: str | Mapping[str, Rule]
) -> tuple[Planned, Callable[[str, object], onnx.ModelProto]]:
    """A plan, and what puts it into the graph of a form in a spelling."""
    from ssm_export.quantization.apply import write_plan

    found = small.planned(recipe)

    def graph(form: str, spelling: object) -> onnx.ModelProto:
        from ssm_export.quantization.typed import Typed, raise_opset

        model = small.graph(form)
        if spelling is not None:
            write_plan(model, found.plan, found.tensors, spelling)
        if isinstance(spelling, Typed):
            raise_opset(model, found.plan)
        return self_contained(model, form)

    return found, graph
