"""Our torch model on the weights of the bundle: in float64, which is the truth that vectors are
made from, and in the bundle's own precision, which says what PyTorch loses by rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ssm_export.models.base import RecurrentLM
from ssm_export.weights import Weights

RESIDENT_BYTES: Final = 1 << 30
"""A model whose float64 weights fit is kept; a larger one is read block by block at every run."""


class TorchReference:
    """Runs prompts from the initial state, one block in memory at a time if need be.

    Args:
        model: the model, built with fake parameters.
        weights: its parameters; their rounding to the export precision is kept.
        exact: compute in float64; otherwise as the model says: its types of weights, activations
            and states, matrix products summed in fp32 or wider.
    """

    name = "torch"

    def __init__(self, model: RecurrentLM, weights: Weights, *, exact: bool = True) -> None:
        self.model = model
        self.weights = weights
        self.states = model.states()
        self.exact = exact
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.resident = parameters * 8 <= RESIDENT_BYTES
        self._shell = _empty_copy(model, exact=exact)
        self._loaded: set[str] = set()

    def forward(
        self, input_ids: np.ndarray, sequence_lengths: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run whole prompts from the initial state.

        Args:
            input_ids: (B,T) integers.
            sequence_lengths: (B,) valid tokens of each row; all when None.

        Returns:
            logits (B,T,V) float64, and the states after each row's last token under their
            ``past_*`` names in float64.
        """
        lengths = None if sequence_lengths is None else torch.as_tensor(sequence_lengths).int()
        past = self._initial(input_ids.shape[0])
        logits, present = self._run(torch.as_tensor(input_ids), past, lengths, last_only=False)
        return logits.double().numpy(), self._named(present)

    def generate(self, input_ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Greedy continuation: tokens (B,count), and the margins (B,count) of their logits."""
        ids = torch.as_tensor(input_ids)
        state = self._initial(ids.shape[0])
        tokens, margins = [], []
        for _ in range(count):
            logits, state = self._run(ids, state, None, last_only=True)
            best = logits[:, 0].topk(2, dim=-1)
            ids = best.indices[:, :1]
            tokens.append(ids)
            margins.append(best.values[:, :1] - best.values[:, 1:])
        return torch.cat(tokens, 1).numpy(), torch.cat(margins, 1).numpy()

    def last_logits(
        self, input_ids: np.ndarray, *, piece: int | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Like :meth:`forward`, but the logits of the last token only (B,1,V).

        With ``piece`` so many tokens go in at a time: any number of them takes constant memory,
        and with one a state that is not exact is rounded at every token, as decoding does.
        """
        state = self._initial(input_ids.shape[0])
        for ids in torch.as_tensor(input_ids).split(piece or input_ids.shape[1], dim=1):
            logits, state = self._run(ids, state, None, last_only=True)
        return logits.double().numpy(), self._named(state)

    @torch.no_grad()
    def _run(
        self, ids: Tensor, past: tuple[Tensor, ...], lengths: Tensor | None, *, last_only: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        shell = self._shell
        with WideProducts(), self._filled(shell.backbone.embeddings, "backbone.embeddings."):
            hidden = shell.embed(ids)
            present: list[Tensor] = []
            for layer, block in enumerate(shell.backbone.layers):
                start = len(present)
                end = start + len(shell.layer_states(layer))
                with self._filled(block, f"backbone.layers.{layer}."):
                    hidden, states = block(hidden, past[start:end], lengths)
                present.extend(states)
            with self._filled(shell.backbone.norm_f, "backbone.norm_f."), ExitStack() as stack:
                if not shell.config.tie_word_embeddings:
                    stack.enter_context(self._filled(shell.lm_head, "lm_head."))
                return shell.tail(hidden, lengths, last_only=last_only), tuple(present)

    @contextmanager
    def _filled(self, module: nn.Module, prefix: str) -> Iterator[None]:
        """Fill a module with its weights for the block, and empty it again if memory is short."""
        if prefix not in self._loaded:
            self.weights.load_into(module, prefix, torch.float64 if self.exact else None)
        if self.resident:
            self._loaded.add(prefix)
        try:
            yield
        finally:
            if not self.resident:
                _empty(module)

    def _initial(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.full(
                [size if isinstance(size, int) else batch for size in state.shape],
                state.initial_value,
                dtype=torch.float64 if self.exact else getattr(torch, state.dtype),
            )
            for state in self.states
        )

    def _named(self, present: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
        return {
            spec.name_in: value.double().numpy()
            for spec, value in zip(self.states, present, strict=True)
        }


class WideProducts(TorchFunctionMode):
    """Matrix products of half-precision tensors summed in fp32 and rounded once, as GPUs do.

    torch's own fp16 products on a CPU sum in fp16, and run a hundred times slower than fp32 ones.
    """

    _PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, functional.linear)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in self._PRODUCTS and args[0].dtype in (torch.float16, torch.bfloat16):
            return function(*(tensor.float() for tensor in args)).to(args[0].dtype)
        return function(*args, **(kwargs or {}))


def _empty_copy(model: RecurrentLM, *, exact: bool) -> RecurrentLM:
    """The same model with parameters that have no elements, filled later."""
    types = (torch.float64, torch.float64) if exact else (model.dtype, model.state_dtype)
    with torch.device("meta"):
        copy = type(model)(model.config, dtype=types[0], state_dtype=types[1])
    _empty(copy)
    return copy


def _empty(module: nn.Module) -> None:
    """Give every parameter no elements, and so no memory."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            nothing = torch.empty(0, dtype=parameter.dtype)
            setattr(part, name, nn.Parameter(nothing, requires_grad=False))
