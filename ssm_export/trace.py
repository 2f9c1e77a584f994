"""Torch module → canonical ONNX: one node per scan, readable names, no weights inside.

The model is built with fake parameters, so tracing costs no memory for weights; the graph's
initializers are named after the parameters and get their data from ``weights.data`` later.

Layers that are built alike are traced once: torch sees one graph of separate parts (embedding, each
kind of block, tail), and :mod:`ssm_export.assemble` puts the whole model together from them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import onnxscript
import torch
from onnxscript import opset20
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ssm_export import errors
from ssm_export.assemble import BlockPlan, Parts, assemble
from ssm_export.errors import SsmExportError
from ssm_export.glossary import BATCH_AXIS, TIME_AXIS
from ssm_export.ops import all_ops, register_schemas
from ssm_export.ops.spec import DOMAIN, OPSET, VERSION, OpSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from ssm_export.models.base import RecurrentLM

_EXAMPLE_BATCH = 2
_EXAMPLE_TIME = 5


def build_fake(make_model: Callable[[], RecurrentLM]) -> tuple[RecurrentLM, FakeTensorMode]:
    """Build a model whose parameters have shapes and types but no memory."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        return make_model(), mode


def trace(
    model: RecurrentLM, mode: FakeTensorMode, form: str, *, ragged: bool, all_logits: bool
) -> ir.Model:
    """Trace one graph.

    Args:
        model: built by :func:`build_fake`.
        mode: its fake mode.
        form: ``step`` (T=1) or ``prefill`` (T symbolic).
        ragged: whether the graph takes ``sequence_lengths (B,)`` int32.
        all_logits: logits of every position, not only the last of each row.

    Returns:
        The canonical graph: calls of our operators without bodies, initializers without data.
        Inputs ``input_ids``, ``sequence_lengths`` when ragged, every past state; outputs
        ``logits`` and every present state.
    """
    plan = _plan(model)
    parts = _PartsModule(model, plan.examples, ragged=ragged, last_only=not all_logits)
    names, arguments, axes = _inputs(model, mode, form, plan, ragged=ragged)
    outputs = ["hidden.0", "logits"]
    for kind, layer in enumerate(plan.examples):
        states = model.layer_states(layer)
        outputs += [f"block.{kind}.hidden", *(f"block.{kind}.{s.kind}" for s in states)]
    register_schemas()
    with _quiet():
        try:
            program = torch.onnx.export(
                parts,
                tuple(arguments),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={"input_ids": axes[0], "rest": tuple(axes[1:])},
                input_names=names,
                output_names=outputs,
                custom_translation_table=_translations(),
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__  # type: ignore[assignment]  # torch wraps plain exceptions
            raise SsmExportError(
                errors.TRACE_FAILED,
                f"the {form} graph could not be traced: {type(cause).__name__}: {cause}",
                where=model.model_type,
            ) from error
    assert program is not None
    return assemble(
        Parts(program.model, ragged=ragged), plan, model.states(), name=f"{model.model_type}_{form}"
    )


def _plan(model: RecurrentLM) -> BlockPlan:
    """Which layers are built alike, and one example layer of each kind."""
    kinds: dict[object, int] = {}
    examples: list[int] = []
    layers: list[int] = []
    for layer, block in enumerate(model.backbone.layers):
        structure = _structure(block)
        if structure not in kinds:
            kinds[structure] = len(examples)
            examples.append(layer)
        layers.append(kinds[structure])
    return BlockPlan(
        examples=tuple(examples), layers=tuple(layers), prefix="backbone.layers.{layer}"
    )


def _structure(module: nn.Module) -> object:
    """Everything about a module that its graph can depend on, but the values of its weights."""
    found: list[object] = []
    for path, part in module.named_modules():
        plain = {k: repr(v) for k, v in vars(part).items() if not k.startswith("_")}
        found.append((path, type(part).__qualname__, tuple(sorted(plain.items()))))
    found += [(name, tuple(p.shape), p.dtype) for name, p in module.named_parameters()]
    return tuple(found)


class _PartsModule(nn.Module):
    """The parts of a model side by side: nothing flows from one to another."""

    def __init__(
        self, model: RecurrentLM, examples: tuple[int, ...], *, ragged: bool, last_only: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.examples = examples
        self.ragged = ragged
        self.last_only = last_only

    def forward(self, input_ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        tensors = list(rest)
        lengths = tensors.pop(0) if self.ragged else None
        hidden = tensors.pop(0)
        outputs = [
            self.model.embed(input_ids),
            self.model.tail(hidden, lengths, last_only=self.last_only),
        ]
        for layer in self.examples:
            count = len(self.model.layer_states(layer))
            past, tensors = tuple(tensors[:count]), tensors[count:]
            mixed, present = self.model.backbone.layers[layer](hidden, past, lengths)
            outputs += [mixed, *present]
        return tuple(outputs)


def _inputs(
    model: RecurrentLM, mode: FakeTensorMode, form: str, plan: BlockPlan, *, ragged: bool
) -> tuple[list[str], list[Tensor], list[dict[int, Any]]]:
    """Names, example tensors and dynamic axes of the parts' inputs."""
    batch = torch.export.Dim(BATCH_AXIS, min=1)
    in_time = {0: batch, 1: torch.export.Dim(TIME_AXIS, min=1)} if form == "prefill" else {0: batch}
    time = _EXAMPLE_TIME if form == "prefill" else 1
    with mode:
        ids = torch.zeros(_EXAMPLE_BATCH, time, dtype=torch.int64)
        named: list[tuple[str, Tensor, dict[int, Any]]] = [("input_ids", ids, in_time)]
        if ragged:
            lengths = torch.full((_EXAMPLE_BATCH,), time, dtype=torch.int32)
            named.append(("sequence_lengths", lengths, {0: batch}))
        named.append(("hidden", torch.empty_like(model.embed(ids)), in_time))
        by_layer = model.states()
        for kind, layer in enumerate(plan.examples):
            for state in (s for s in by_layer if s.layer == layer):
                shape = [size if isinstance(size, int) else _EXAMPLE_BATCH for size in state.shape]
                past = torch.zeros(*shape, dtype=getattr(torch, state.dtype))
                named.append((f"block.{kind}.past_{state.kind}", past, {0: batch}))
    return [n for n, _, _ in named], [t for _, t, _ in named], [a for _, _, a in named]


def _translations() -> dict[Any, Any]:
    """Torch operator → function that emits its node."""
    table: dict[Any, Any] = {torch.ops.aten.linear.default: _head_gemm}
    for spec in all_ops().values():
        table[getattr(torch.ops.ssm_export, spec.name).default] = _emitter(spec)
    return table


def _emitter(spec: OpSpec) -> Callable[..., Any]:
    node = getattr(onnxscript.values.Opset(DOMAIN, VERSION), spec.name)
    ports = [port.name for port in spec.inputs]
    parameters = [*ports, *spec.attributes]

    def emit(*arguments: Any, **named: Any) -> Any:
        values = {**dict(zip(parameters, arguments, strict=False)), **named}
        inputs = [values.get(name) for name in ports]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {name: values.get(name, default) for name, default in spec.attributes.items()}
        return node(*inputs, **attributes, _outputs=len(spec.outputs))

    return emit


def _head_gemm(x: Any, weight: Any, bias: Any = None) -> Any:
    """``x (B,T,M), weight (V,M) → (B,T,V)`` as one Gemm with the weight as it is stored."""
    import onnx_ir as ir

    op = opset20
    width, vocabulary = x.shape[-1], weight.shape[0]
    rows = op.Reshape(x, op.Constant(value_ints=[-1, width]))
    logits = op.Gemm(rows, weight, transB=1)
    for value, size in ((rows, width), (logits, vocabulary)):
        value.type, value.shape = x.type, ir.Shape(["rows", size])
    leading = op.Shape(x, start=0, end=2)
    shape = op.Concat(leading, op.Constant(value_ints=[vocabulary]), axis=0)
    for value, size in ((leading, 2), (shape, 3)):
        value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([size])
    return op.Reshape(logits, shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the terminal; its errors are raised, not printed."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
