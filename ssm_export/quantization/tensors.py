"""The weights of a model as codes, each made when it is first asked for and then kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ssm_export.quantization.plan import WeightKey, scale_type
from ssm_export.quantization.rotation import rotate_weight
from ssm_export.quantization.rounding import gptq
from ssm_export.quantization.schemes import SCHEMES, QuantizedTensor, quantize_weight
from ssm_export.quantization.sites import Sites, WeightSite

if TYPE_CHECKING:
    import onnx_ir as ir

PER_TENSOR = ("fp8",)
"""Formats with one scale for the whole weight: what every TensorRT with FP8 takes."""


class Tensors:
    """Reads the float weights of a canonical graph and makes codes of them.

    Args:
        model: the graph; its weights lie in a file and are read one by one.
        sites: of it.
        precision: of the bundle; scales have that type.
    """

    def __init__(self, model: ir.Model, sites: Sites, precision: str) -> None:
        self._initializers = model.graph.initializers
        self._sites = {site.name: site for site in sites.weights}
        self._scale_dtype = scale_type(precision)
        self._made: dict[WeightKey, QuantizedTensor] = {}

    def site(self, name: str) -> WeightSite:
        """The weight site of a name."""
        return self._sites[name]

    def input_of(self, name: str) -> str:
        """The value that a linear layer multiplies."""
        use = self._sites[name].product
        assert use is not None
        return use.activation

    def read(self, name: str) -> np.ndarray:
        """A float weight, float32, (K,N) of a linear layer or (V,M) of a vocabulary."""
        tensor = self._initializers[self._sites[name].weight].const_value
        assert tensor is not None
        return tensor.numpy().astype(np.float32)

    def get(self, key: WeightKey) -> QuantizedTensor:
        """The codes of a weight, rounded to nearest unless :meth:`round_with` made them."""
        if key not in self._made:
            assert key.rounding == "nearest", f"{key.site} was not calibrated as {key}"
            site = self._sites[key.site]
            weight = self.read(key.site)
            self._made[key] = quantize_weight(
                rotate_weight(weight, key.rotate) if key.rotate else weight,
                key.scheme,
                axis=_axis(site, key),
                block=key.block,
                scale_dtype=self._scale_dtype,
                clip=key.clip,  # type: ignore[arg-type]  # a recipe holds one of the two
                name=site.weight,
            )
        return self._made[key]

    def drop(self, key: WeightKey) -> None:
        """Forget the codes of a weight, to save memory."""
        self._made.pop(key, None)

    def round_with(self, key: WeightKey, moment: np.ndarray) -> QuantizedTensor:
        """Round a linear layer's weight with the second moment of its input.

        Args:
            key: what to make.
            moment: XᵀX / n (K,K) of the input before any rotation.
        """
        weight = self.read(key.site)
        if key.rotate:
            weight = rotate_weight(weight, key.rotate)
            moment = rotate_weight(rotate_weight(moment, key.rotate).T, key.rotate)
        self._made[key] = gptq(
            weight,
            moment,
            key.scheme,
            block=key.block,
            scale_dtype=self._scale_dtype,
            clip=key.clip,  # type: ignore[arg-type]  # a recipe holds one of the two
            name=self._sites[key.site].weight,
        )
        return self._made[key]

    def packed(self, key: WeightKey, tensor: QuantizedTensor) -> dict[str, np.ndarray]:
        """Codes and scales under names that :meth:`restore` reads."""
        name = "|".join(
            str(part)
            for part in (key.site, key.scheme, key.block, key.rotate, key.rounding, key.clip)
        )
        return {f"{name}|values": tensor.values, f"{name}|scale": tensor.scale}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take codes that :meth:`packed` gave."""
        for name in arrays:
            if not name.endswith("|values"):
                continue
            head = name.removesuffix("|values")
            site, scheme, block, rotate, rounding, clip = head.split("|")
            key = WeightKey(site, scheme, int(block), int(rotate), rounding, clip)
            self._made[key] = QuantizedTensor(
                scheme,
                arrays[name],
                arrays[f"{head}|scale"],
                axis=_axis(self._sites[site], key) or 0,
                block=key.block,
                scale_bytes=self._scale_dtype.itemsize,
            )


def _axis(site: WeightSite, key: WeightKey) -> int | None:
    """The axis that scales run along, or that is cut into blocks; None for one scale in all."""
    if key.block:
        return site.input_axis
    if key.scheme in PER_TENSOR:
        return None
    assert not SCHEMES[key.scheme].needs_block
    return site.output_axis
