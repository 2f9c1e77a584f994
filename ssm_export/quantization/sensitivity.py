"""How much each quantized tensor costs by itself: the divergence at the logits, run, not estimated.

Every tensor is quantized alone and the model is run to its end, all tensors side by side in one
walk as far as memory allows. Until the layer where a probe differs it shares the float model's
work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ssm_export.quantization.apply import Simulated, write_plan
from ssm_export.quantization.evaluation import evaluate, json_number
from ssm_export.quantization.plan import ActivationPlan, Plan, WeightKey
from ssm_export.quantization.recipe import FLOAT
from ssm_export.quantization.stream import Edit, LayerStream
from ssm_export.quantization.tensors import Tensors

if TYPE_CHECKING:
    import onnx_ir as ir

_HIDDEN_BYTES: Final = 1 << 30
"""Residual streams of all probes of a walk, before and after a layer."""
_OPERATIONS: Final = 4e12
"""Multiply-adds that all probes together should take: minutes on two cores."""
_FEWEST: Final = 64
"""Tokens below which a mean over them says too little."""
_MOST: Final = 4096
"""Tokens beyond which a mean over them says no more."""


@dataclass(frozen=True)
class Sensitivity:
    """What one quantized tensor costs while all others stay floating point.

    Attributes:
        site: its name.
        what: such as ``weights int4/128, gptq`` or ``activation int8``.
        kl_bits: KL(float ‖ this) in bits per token.
        snr_db: signal-to-noise ratio where it first shows: the residual stream after its layer, or
            the logits for a head; infinite where nothing changed.
    """

    site: str
    what: str
    kl_bits: float
    snr_db: float

    def as_json(self) -> dict[str, Any]:
        """A JSON object; numbers that are not finite are null."""
        return {name: json_number(value) for name, value in vars(self).items()}


def sensitivities(stream: LayerStream, plan: Plan, tensors: Tensors) -> tuple[Sensitivity, ...]:
    """Quantize each tensor of a plan alone and measure what that costs, worst first.

    Args:
        stream: the float model on held-out rows; fewer of them are taken where there are many
            tensors (:func:`few_rows`).
        plan: what is quantized how.
        tensors: its codes.
    """
    probes: dict[str, Edit] = {}
    names: dict[str, tuple[str, str]] = {}
    for key in plan.weights.values():
        probe = f"weights {key.site}"
        probes[probe] = weight_probe(key, tensors)
        names[probe] = (key.site, weight_words(key))
    for activation in plan.activations:
        if activation.scheme == FLOAT:
            continue
        probe = f"activation {activation.name}"
        probes[probe] = activation_probe(activation, tensors)
        names[probe] = (activation.name, f"activation {activation.scheme}")
    found = [
        Sensitivity(*names[probe], kl_bits, snr)
        for probe, (kl_bits, snr) in probe_costs(stream, probes).items()
    ]
    # A divergence that is no number is the worst there is; ties go by name.
    worst = {id(s): math.inf if math.isnan(s.kl_bits) else s.kl_bits for s in found}
    return tuple(sorted(found, key=lambda s: (-worst[id(s)], s.site, s.what)))


def probe_costs(
    stream: LayerStream, probes: Mapping[str, Edit], *, hidden_bytes: int = _HIDDEN_BYTES
) -> dict[str, tuple[float, float]]:
    """KL in bits per token, and the first finite signal-to-noise ratio in dB, of every probe.

    Args:
        stream: the float model on rows; :func:`few_rows` chooses among them.
        probes: name to edit.
        hidden_bytes: what the residual streams of one walk may take.
    """
    few = LayerStream(stream.bundle, few_rows(stream, len(probes)), progress=stream.progress)
    each = 2 * 4 * few.rows.size * stream.bundle.manifest.sizes["M"]
    found: dict[str, tuple[float, float]] = {}
    groups = list(_groups(list(probes), max(1, hidden_bytes // each)))
    for number, group in enumerate(groups, 1):
        what = "tensor by tensor" + (f" {number}/{len(groups)}" if len(groups) > 1 else "")
        result = evaluate(few, {name: probes[name] for name in group}, None, what=what)
        for name in group:
            first = next((snr for snr in result.snr_db[name] if snr != math.inf), math.inf)
            found[name] = (result.quality[name].kl_bits, first)
    return found


def few_rows(stream: LayerStream, probes: int) -> np.ndarray:
    """The first rows of a stream, as many as so many probes can be run on in minutes.

    A probe in the middle of a model runs half of its layers: probes·tokens·parameters/2
    multiply-adds in all. Where one row is too many its beginning is taken, of 64 tokens or more.

    Returns:
        rows (N,T) int64.
    """
    parameters = stream.bundle.manifest.sizes["parameters"]
    tokens = int(2 * _OPERATIONS / max(1, probes * parameters))
    tokens = min(max(tokens, _FEWEST), _MOST)
    count, columns = stream.rows.shape
    if tokens >= columns:
        return stream.rows[: min(count, tokens // columns)]
    return stream.rows[:1, :tokens]


def weight_probe(key: WeightKey, tensors: Tensors) -> Edit:
    """An edit that quantizes one weight and nothing else, with the rotation of its input."""
    site, activations = tensors.site(key.site), []
    if key.rotate and site.product is not None:
        use = site.product
        activations.append(
            ActivationPlan(site.name, use.activation, ((use.node, 0),), rotate=key.rotate)
        )
    return _edit(Plan({key.site: key}, tuple(activations)), tensors)


def activation_probe(activation: ActivationPlan, tensors: Tensors) -> Edit:
    """An edit that quantizes one activation and nothing else; where it is rotated for that, it is
    rotated back, because the weight is not."""
    edit = _edit(Plan(activations=(activation,)), tensors)
    if not activation.rotate:
        return edit

    def there_and_back(model: ir.Model) -> bool:
        if not edit(model):
            return False
        nodes = {node.name: node for node in model.graph}
        node, position = activation.uses[0]
        value = nodes[node].inputs[position]
        assert value is not None and value.name is not None
        back = ActivationPlan(activation.name, value.name, activation.uses, activation.rotate)
        return write_plan(model, Plan(activations=(back,)), tensors, Simulated())

    return there_and_back


def weight_words(key: WeightKey) -> str:
    """How a weight is quantized, for people."""
    parts = [f"weights {key.scheme}" + (f"/{key.block}" if key.block else "")]
    parts += [key.rounding] if key.rounding != "nearest" else []
    parts += [f"rotated {key.rotate}"] if key.rotate else []
    return ", ".join(parts)


def _edit(plan: Plan, tensors: Tensors) -> Edit:
    return lambda model: write_plan(model, plan, tensors, Simulated())


def _groups(names: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
