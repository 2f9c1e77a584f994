"""What a quantized model is off by, from a simulation that shares no operator with its graphs.

The simulation runs the float graph with the numbers that the codes stand for. Its errors against
the recorded float64 vectors become the ``rounding`` of the quantized bundle, which sets the gates
of ``verify``: a graph may be off by up to twice what its quantization alone comes to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_ir as ir

from ssm_export.bundle import Bundle
from ssm_export.progress import SILENT, Progress
from ssm_export.quantization.apply import Writer
from ssm_export.quantization.pieces import Piece
from ssm_export.quantization.stream import FLOAT, Edit, LayerStream
from ssm_export.verification.measure import LOGITS
from ssm_export.verification.rounding import measure_floor
from ssm_export.verification.truth import Case, NotRun, Recorded

Errors = dict[str, dict[str, float]]
"""Tensor to ``nmse`` and ``element``."""
Floors = dict[str, Errors]
"""Kind of recorded case to errors."""
KINDS: Final = ("prefill", "drift")
_SIMULATED: Final = "simulated"
_SHAKE: Final = {"fp32": 2.0**-17, "fp16": 2.0**-9, "bf16": 2.0**-6}
"""Share by which hidden values are shaken: 64 times the rounding of fp32, so that some values do
change their codes, and four times that of the narrow types."""
_NEARBY: Final = 64
"""Positions at the end of a prompt whose logits are looked at where its truth has the last ones
alone. The error at one position is one draw of what codes come to there: two right graphs whose
values at the border of two codes go different ways had 1.1e-2 and 3.4e-2 at the same token."""


@dataclass(frozen=True)
class Simulation:
    """What a simulated model makes of a recorded prompt.

    Attributes:
        case: the prompt and its truth.
        logits: (B,T,V) or (B,1,V) float32, at the positions that the truth has; None as there.
        states: ``past_*`` name to the state after the prompt, float32.
        nearby: the largest errors of its logits at the last positions, against the float model;
            empty where the truth has logits of every position.
    """

    case: Case
    logits: np.ndarray | None
    states: Mapping[str, np.ndarray]
    nearby: Mapping[str, float] = field(default_factory=dict)

    def against(self, logits: np.ndarray | None, states: Mapping[str, np.ndarray]) -> Errors:
        """Its errors against other logits and states of the same prompt."""
        found = {
            name: measure_floor(name, self.states[name], want) for name, want in states.items()
        }
        if logits is not None and self.logits is not None:
            found[LOGITS] = measure_floor(LOGITS, self.logits, logits)
        return found

    def errors(self) -> Errors:
        """Its errors against the truth; of logits those nearby, if they are larger."""
        found = self.against(self.case.logits, self.case.states)
        if LOGITS in found:
            found[LOGITS] = {
                name: max(error, self.nearby.get(name, error))
                for name, error in found[LOGITS].items()
            }
        return found


def simulations(
    bundle: Bundle, edit: Edit, progress: Progress = SILENT, kinds: tuple[str, ...] = KINDS
) -> dict[str, Simulation]:
    """Kind of recorded case to what the simulated model makes of it.

    Args:
        bundle: the float bundle, whose vectors are the truth.
        edit: puts the simulated quantization into a piece.
        progress: shows one step per piece.
        kinds: of cases.
    """
    made: dict[str, Simulation] = {}
    for kind in kinds:
        with contextlib.suppress(NotRun):
            made[kind] = _simulate(bundle, Recorded(bundle).case(kind), edit, progress)
    return made


def _simulate(bundle: Bundle, case: Case, edit: Edit, progress: Progress) -> Simulation:
    stream = LayerStream(bundle, case.input_ids, progress=progress)
    names = {state.name_out: state.name_in for state in bundle.manifest.states}
    parts: dict[str, list[np.ndarray]] = {}

    def presents(piece: Piece) -> list[str]:
        return [out for out, name in names.items() if name in piece.states]

    def keep(name: str, array: np.ndarray) -> None:
        parts.setdefault(names[name], []).append(array)

    edits = {_SIMULATED: edit}
    hidden: Mapping[str, np.ndarray] = {}
    what = f"simulating ({case.name})"
    for stage in stream.walk(edits, taps=presents, on_tap=keep, tapped=_SIMULATED, what=what):
        hidden = stage.hidden
    states = {name: np.concatenate(parts[name]) for name in case.states}
    if case.logits is None:
        return Simulation(case, None, states)
    positions = case.logits.shape[1]
    batch, tokens = case.input_ids.shape
    seen = max(positions, min(_NEARBY, tokens))
    last = {name: value[:, -seen:] for name, value in hidden.items()}
    parts = {name: [] for name in last}
    for _, logits in stream.head(last, edits):
        for name, array in logits.items():
            parts[name].append(array)
    whole = {name: np.concatenate(found).reshape(batch, seen, -1) for name, found in parts.items()}
    nearby = {} if positions == seen else measure_floor(LOGITS, whole[_SIMULATED], whole[FLOAT])
    return Simulation(case, whole[_SIMULATED][:, -positions:], states, nearby)


def shaken(edit: Edit, precision: str, seed: int) -> Edit:
    """An edit whose pieces read hidden values that are off by a little.

    Two right ways to compute a graph give a value at the border of two codes one of them each, so
    they differ by more than their own rounding. How much more, this edit tells: the channels of
    every hidden value are off by random shares that are some times the rounding of the precision.
    """
    amount = _SHAKE[precision]

    def changed(model: ir.Model) -> bool:
        edit(model)
        writer = Writer(model.graph)
        for value in [v for v in model.graph.inputs if str(v.name).startswith("hidden.")]:
            assert value.shape is not None
            noise = np.random.default_rng(seed).standard_normal(int(value.shape[-1]))  # type: ignore[arg-type]  # channels are static
            factors = writer.constant("constant/shaken", (1 + amount * noise).astype(np.float32))
            uses = [(use.node, use.idx) for use in value.uses()]
            made = writer.after(value, "Mul", [value, factors], f"{value.name}/shaken")
            for node, position in uses:
                node.replace_input_with(position, made)
        return True

    return changed


def largest(*several: Mapping[str, Mapping[str, float]]) -> Errors:
    """The largest of several draws of the same errors."""
    return {
        tensor: {name: max(draw[tensor][name] for draw in several) for name in errors}
        for tensor, errors in several[0].items()
    }


def added(*several: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Floors:
    """Errors of independent causes together: mean squares add up, largest elements in squares."""
    total: Floors = {}
    for floors in several:
        for kind, tensors in floors.items():
            for name, error in tensors.items():
                sums = total.setdefault(kind, {}).setdefault(name, {"nmse": 0.0, "element": 0.0})
                sums["nmse"] += error["nmse"]
                sums["element"] = math.hypot(sums["element"], error["element"])
    return total


def state_floors(bundle: Bundle, dtype: str, progress: Progress = SILENT) -> Floors:
    """What rounding the state alone comes to: the float graphs, their states rounded in numpy.

    Args:
        bundle: the float bundle.
        dtype: of the state in the new bundle.
        progress: shows one step per token.

    Returns:
        errors against the recorded vectors; of the case ``drift`` after as many single steps.
    """
    from ssm_export.engines import Recurrent, open_runner
    from ssm_export.quantization.state import RoundedStates

    if dtype == bundle.manifest.state_dtype:
        return {}
    floors: Floors = {}
    runner = open_runner(bundle, "onnxruntime")
    try:
        model = RoundedStates(Recurrent(bundle, runner), dtype)
        for kind in KINDS:
            try:
                case = Recorded(bundle).case(kind)
            except NotRun:
                continue
            state = model.initial_state(len(case.input_ids))
            positions = case.input_ids.shape[1]
            task = progress.task(f"rounding states ({kind})", positions)
            logits = np.empty(0)
            for position in range(positions):
                logits, state = model.step(case.input_ids[:, position : position + 1], state)
                task.advance()
            found = {
                name: measure_floor(name, state[name], want) for name, want in case.states.items()
            }
            if case.logits is not None:
                found[LOGITS] = measure_floor(LOGITS, logits, case.logits[:, -1:])
            floors[kind] = found
    finally:
        runner.close()
    return floors
