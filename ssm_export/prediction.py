"""What a device will make of a model, reckoned from sizes before anything runs there.

Every figure is a prediction and says so: ceilings that no implementation passes, and sums of bytes.
A real system reaches 69 to 90 % of the decode ceiling.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.documents.tables import size
from ssm_export.errors import SsmExportError
from ssm_export.targets import Target

if TYPE_CHECKING:
    import onnx_ir as ir

TOKENS: Final = 1024
"""Tokens of a prompt that is predicted for: the chunk that ``build`` allows by default."""
BUILDER_FACTOR: Final = 4
"""Host memory of an engine builder over the weights: 3 to 4 where weights are copied around."""
ACTIVATIONS: Final = 48
"""Numbers of fp32 for each token of a prompt, in inner widths: an estimate. Memory of ONNX Runtime
1.32 on x86-64 grew by 37 (mamba, native graphs) to 48 (the other graphs of both 130m shapes) from
1024 to 4096 tokens; engines whose scans are plugins keep less."""
_THROUGH: Final = ("DequantizeLinear", "QuantizeLinear", "Cast")
"""Nodes that give a weight on in another type."""


@dataclass(frozen=True)
class Needs:
    """What of a model a prediction needs.

    Attributes:
        weights_bytes: of its weights file.
        read_bytes: of the weights that one decoded token reads.
        states_per_row: bytes of every state of one batch row.
        body_weights: numbers that each token is multiplied with, but for the head.
        head_weights: numbers of the head (V,M).
        inner, vocabulary: D and V.
        precision: of products, ``fp16``.
        inputs: number formats of products whose inputs are quantized too.
        every_logits: whether prefill computes the head for every token.
    """

    weights_bytes: int
    read_bytes: int
    states_per_row: int
    body_weights: int
    head_weights: int
    inner: int
    vocabulary: int
    precision: str
    inputs: tuple[str, ...] = ()
    every_logits: bool = False

    def workspace_bytes(self, batch: int, tokens: int) -> int:
        """An estimate of the activations of a prompt (batch, tokens), in bytes."""
        positions = tokens if self.every_logits else 1
        return 4 * batch * (tokens * ACTIVATIONS * self.inner + positions * self.vocabulary)


@dataclass(frozen=True)
class ModePrediction:
    """Decoding in one power mode: the ceiling at its bandwidth, tokens per second."""

    name: str
    watts: float | None
    bandwidth_gb_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Prediction:
    """What is to be expected on a device; nothing was run there.

    Attributes:
        target: name of the device.
        batch, tokens: rows, and tokens of a prompt.
        weights_bytes, states_bytes: of all rows; states are held twice, past and present.
        workspace_bytes: an estimate of a prompt's activations.
        builder_bytes: host memory that building an engine may take.
        available_bytes: memory of the device without its reserve; None for a class of cards.
        fits: whether it runs and, where the builder shares the memory, can be built; None where
            that is in doubt (``notes`` say why), False where weights and states alone are too much.
        largest_batch: rows that fit with this prompt; None where the memory is not known.
        decode_tokens_per_s: ceiling of all rows, from memory; None without a bandwidth.
        prefill_tokens_per_s: ceiling of all rows; None where the peak of arithmetic is not known.
        prefill_bound: ``memory`` or ``arithmetic``, or why there is no ceiling.
        modes: the decode ceiling in each power mode.
        notes: what is in doubt, one sentence each.
    """

    target: str
    batch: int
    tokens: int
    weights_bytes: int
    states_bytes: int
    workspace_bytes: int
    builder_bytes: int
    available_bytes: float | None
    fits: bool | None
    largest_batch: int | None
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    prefill_bound: str
    modes: tuple[ModePrediction, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The members of a JSON document; ``predicted`` is true in every one."""
        return {
            "predicted": True,
            **dataclasses.asdict(self),
            "modes": [dataclasses.asdict(mode) for mode in self.modes],
            "notes": list(self.notes),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each figure, for a table; every one says that it is predicted."""
        words = {True: "fits", False: "DOES NOT FIT", None: "in doubt"}
        parts = (
            f"{size(self.weights_bytes)} weights + {size(self.states_bytes)} states "
            f"+ {size(self.workspace_bytes)} workspace"
        )
        room = f" of {size(self.available_bytes)}" if self.available_bytes is not None else ""
        found = [
            ("predicted for", f"{self.target}, batch {self.batch}, prompts of {self.tokens}"),
            ("predicted memory", f"{parts}{room}: {words[self.fits]}"),
        ]
        if self.decode_tokens_per_s is not None:
            slower = [
                f"{mode.name} {_rate(mode.decode_tokens_per_s)}"
                for mode in self.modes
                if mode.decode_tokens_per_s < self.decode_tokens_per_s
            ]
            less = f" ({', '.join(slower)})" if slower else ""
            found.append(
                ("predicted decode", f"≤ {_rate(self.decode_tokens_per_s)} tokens/s{less}")
            )
        if self.prefill_tokens_per_s is None:
            found.append(("predicted prefill", f"no ceiling: {self.prefill_bound}"))
        else:
            rate = _rate(self.prefill_tokens_per_s)
            found.append(("predicted prefill", f"≤ {rate} tokens/s, by {self.prefill_bound}"))
        return found + [("predicted", note) for note in self.notes]


def predict(bundle: Bundle, target: Target, *, batch: int = 1, tokens: int = TOKENS) -> Prediction:
    """Predict memory and ceilings of a bundle on a device. Reads graphs and the manifest only.

    Args:
        bundle: float or quantized; bytes are those of its weights file.
        target: the device.
        batch: rows.
        tokens: of a prompt that is fed in one piece.

    Raises:
        SsmExportError: ``BAD_OPTION`` for a number below one.
    """
    return predict_needs(needs_of(bundle), target, batch=batch, tokens=tokens)


def predict_needs(
    needs: Needs, target: Target, *, batch: int = 1, tokens: int = TOKENS
) -> Prediction:
    """As :func:`predict`, for a model that has no bundle yet."""
    for option, number in (("--batch", batch), ("--tokens", tokens)):
        if number < 1:
            raise SsmExportError(
                errors.BAD_OPTION, f"{option} is {number}", fix=f"{option} of at least 1"
            )
    states = 2 * batch * needs.states_per_row
    workspace = needs.workspace_bytes(batch, tokens)
    builder = BUILDER_FACTOR * needs.weights_bytes
    room, bandwidth = target.available_bytes, target.bandwidth_gb_s
    fits, notes = _fits(needs, target, batch, needs.weights_bytes + states + workspace, builder)
    per_row = 2 * needs.states_per_row + needs.workspace_bytes(1, tokens)
    prefill, bound = _prefill_ceiling(needs, target, batch, tokens)
    return Prediction(
        target=target.name,
        batch=batch,
        tokens=tokens,
        weights_bytes=needs.weights_bytes,
        states_bytes=states,
        workspace_bytes=workspace,
        builder_bytes=builder,
        available_bytes=room,
        fits=fits,
        largest_batch=None
        if room is None
        else max(0, math.floor((room - needs.weights_bytes) / per_row)),
        decode_tokens_per_s=bandwidth and _decode_ceiling(needs, bandwidth, batch),
        prefill_tokens_per_s=prefill,
        prefill_bound=bound,
        modes=tuple(
            ModePrediction(
                mode.name,
                mode.watts,
                mode.bandwidth_gb_s,
                _decode_ceiling(needs, mode.bandwidth_gb_s, batch),
            )
            for mode in target.power_modes
        ),
        notes=notes,
    )


def needs_of(bundle: Bundle) -> Needs:
    """What a prediction needs of a bundle, from its manifest and its step graph."""
    import onnx_ir as ir

    manifest = bundle.manifest
    step = ir.load(bundle.graph_path("step", "canonical"))
    gathered = {
        name
        for name, value in step.graph.initializers.items()
        if value.const_value is not None and only_gathered(value)
    }
    numbers = {
        name: math.prod(value.const_value.shape.numpy())
        for name, value in step.graph.initializers.items()
        if value.const_value is not None
    }
    sizes = manifest.sizes
    head = sizes["V"] * sizes["M"]
    total = sizes.get("parameters", sum(numbers.values()))
    table = head if any(numbers[name] == head for name in gathered) else 0
    inputs = {entry["scheme"] for entry in manifest.quantization.get("activations", {}).values()}
    return Needs(
        weights_bytes=manifest.weights.bytes,
        read_bytes=weights_read(step),
        states_per_row=sum(state.bytes_per_row for state in manifest.states),
        body_weights=max(0, total - table - head),
        head_weights=head,
        inner=sizes["D"],
        vocabulary=sizes["V"],
        precision=manifest.precision,
        inputs=tuple(sorted(inputs)),
        every_logits=manifest.logits == "all",
    )


def weights_read(model: ir.Model) -> int:
    """Bytes of weights that a step graph reads for one token: each once, as they are stored.

    Of an embedding that no product reads, one row is counted, with its scales.
    """
    total = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        shape = tensor.shape.numpy()
        total += -(-tensor.nbytes // shape[0]) if shape and only_gathered(value) else tensor.nbytes
    return total


def only_gathered(value: ir.Value) -> bool:
    """Whether rows of a tensor are picked by ids, and nothing else reads it."""
    readers = value.uses()
    for node, position in readers:
        if node.op_type in _THROUGH:
            if not all(only_gathered(output) for output in node.outputs):
                return False
        elif node.op_type != "Gather" or position != 0:
            return False
    return bool(readers)


def decode_ceiling(
    read_bytes: float, states_per_row: float, bandwidth_gb_s: float, batch: int = 1
) -> float:
    """Tokens per second of all rows that memory allows: b·BW / (W + b(2·state + 2·conv)).

    Args:
        read_bytes: W, of :func:`weights_read`.
        states_per_row: bytes of every state of one row, scan and convolution; each is read and
            written once for a token.
        bandwidth_gb_s: BW.
        batch: b.
    """
    return batch * bandwidth_gb_s * 1e9 / (read_bytes + 2 * batch * states_per_row)


def _decode_ceiling(needs: Needs, bandwidth_gb_s: float, batch: int) -> float:
    return decode_ceiling(needs.read_bytes, needs.states_per_row, bandwidth_gb_s, batch)


def _prefill_ceiling(
    needs: Needs, target: Target, batch: int, tokens: int
) -> tuple[float | None, str]:
    """Tokens per second of a prompt, and what bounds it or why there is none.

    Memory reads the weights and moves the states once for the prompt; arithmetic does two
    operations for each weight and token on the matrix units. Activations and scans are left out:
    both are upper bounds.
    """
    if target.bandwidth_gb_s is None:
        return None, f"{target.name} is a class of cards whose bandwidths differ"
    peak = _peak(target, (needs.precision, *needs.inputs))
    if isinstance(peak, str):
        return None, f"no peak of {peak} products is recorded for {target.name}"
    moved = needs.read_bytes + 2 * batch * needs.states_per_row
    headed = tokens if needs.every_logits else 1
    work = 2 * batch * (tokens * needs.body_weights + headed * needs.head_weights)
    by_memory, by_arithmetic = moved / (target.bandwidth_gb_s * 1e9), work / (peak * 1e12)
    bound = "memory" if by_memory > by_arithmetic else "arithmetic"
    return batch * tokens / max(by_memory, by_arithmetic), bound


def _peak(target: Target, formats: Iterable[str]) -> float | str:
    """The fastest of these formats; the name of one whose rate is not known."""
    rates = target.peak_tflops
    found = []
    for name in formats:
        # bf16 is as fast as fp16 or slower, so that the other's rate is a ceiling of it.
        rate = rates.get(name, rates.get("fp16") if name == "bf16" else None)
        if rate is None:
            return name
        found.append(rate)
    return max(found)


def _fits(
    needs: Needs, target: Target, batch: int, running: float, builder: float
) -> tuple[bool | None, tuple[str, ...]]:
    room = target.available_bytes
    if room is None:
        return None, (f"{target.name} is a class of cards, so its memory is not known",)
    reserve = f"{size(room)} are left after a reserve of {target.reserve_gb:g} GB"
    if needs.weights_bytes + batch * needs.states_per_row > room:
        alone = needs.weights_bytes + batch * needs.states_per_row
        return False, (f"weights and states alone are {size(alone)}; {reserve}",)
    notes = []
    if running > room:
        notes.append(f"a prompt may need {size(running)}; {reserve}")
    if target.unified_memory and builder > room:
        notes.append(
            f"building an engine may need {size(builder)} ({BUILDER_FACTOR} times the weights); "
            f"{reserve}"
        )
    return (None if notes else True), tuple(notes)


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
