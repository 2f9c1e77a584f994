"""transformers' model in float64 as an independent reference.

Only whole prompts from the initial state are run: its multi-token continuation of Mamba-1 restarts
from a zero state, so it must not be asked to continue one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ssm_export.bundle import StateSpec
from ssm_export.checkpoints import Checkpoint
from ssm_export.errors import missing_package

_KINDS = {"conv": "get_conv_state", "ssm": "get_recurrent_state"}


class TransformersReference:
    """A checkpoint run by transformers.

    Args:
        checkpoint: an open checkpoint of either layout.
        states: the states of the bundle, for their names and layouts.
        dtype: the export precision; the weights are rounded to it and widened to float64.
    """

    name = "transformers"

    def __init__(
        self, checkpoint: Checkpoint, states: tuple[StateSpec, ...], dtype: torch.dtype
    ) -> None:
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as error:
            raise missing_package("transformers", "dev", "verify --against transformers") from error
        config = AutoConfig.for_model(checkpoint.model_type, **_plain(checkpoint.config))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        values = {}
        for name, tensor in checkpoint.tensors.items():
            keep = name.endswith(("A_log", ".D", "dt_bias", "dt_proj.bias"))
            stored = tensor.read()
            values[name] = (stored.float() if keep else stored.to(dtype)).double()
        model.load_state_dict(values, strict=False, assign=True)
        model.tie_weights()
        missing = [name for name, p in model.named_parameters() if p.device.type == "meta"]
        if missing:
            raise ValueError(f"transformers has no values for {missing}")
        self._model = model.double().eval()
        self._states = states

    @torch.no_grad()
    def forward(self, input_ids: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """logits (B,T,V) float64 and the states after the prompt, in the bundle's layouts."""
        output = self._model(input_ids=torch.as_tensor(input_ids), use_cache=True)
        found = {}
        for spec in self._states:
            read = getattr(output.cache_params, _KINDS[spec.kind], None)
            if read is None:
                continue
            value = read(spec.layer, state_idx=0).double()
            if spec.kind == "conv":  # k wide and channels first there; the oldest input is not kept
                value = value[..., 1:].transpose(1, 2)
            found[spec.name_in] = value.numpy()
        return output.logits.double().numpy(), found

    def generate(self, input_ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Greedy continuation by whole prompts: tokens (B,count) and margins (B,count)."""
        ids = np.asarray(input_ids)
        margins = []
        for _ in range(count):
            logits, _ = self.forward(ids)
            best = torch.as_tensor(logits[:, -1]).topk(2, dim=-1)
            ids = np.concatenate([ids, best.indices[:, :1].numpy()], axis=1)
            margins.append((best.values[:, :1] - best.values[:, 1:]).numpy())
        return ids[:, -count:], np.concatenate(margins, axis=1)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config without what ``for_model`` sets itself."""
    dropped = {"model_type", "architectures", "transformers_version", "torch_dtype", "dtype"}
    return {key: value for key, value in config.items() if key not in dropped}
