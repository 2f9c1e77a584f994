"""A settled plan as a bundle on disk."""

from __future__ import annotations

import datetime
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir
import yaml

from ssm_export.bundle import UNIFIED, WEIGHTS, Bundle, ParityEntry, StateSpec
from ssm_export.engines._plugins import PLUGIN, plugin_graph
from ssm_export.graph_files import CANONICAL, fastest_lowering, move_out, write_graphs
from ssm_export.lowering import LOWERINGS, attach_bodies
from ssm_export.machine import tool_versions
from ssm_export.progress import Progress
from ssm_export.quantization.apply import simulated, write_plan
from ssm_export.quantization.cpu_rounding import round_inputs
from ssm_export.quantization.floors import (
    Floors,
    Simulation,
    added,
    largest,
    shaken,
    simulations,
    state_floors,
)
from ssm_export.quantization.plan import Plan
from ssm_export.quantization.recipe import FLOAT
from ssm_export.quantization.state import retype_states
from ssm_export.quantization.stream import Edit
from ssm_export.quantization.tensors import Tensors
from ssm_export.quantization.typed import Typed, raise_opset
from ssm_export.targets import get_target
from ssm_export.verification.rounding import of_runner
from ssm_export.verification.truth import EXACT, PREFILL, SIMULATED

if TYPE_CHECKING:
    from ssm_export.quantization.job import Job

_CONFIG: Final = "effective_config.yaml"
_CPU: Final = "onnxruntime"
"""The runner whose rounding of inputs is simulated."""
_DRAWS: Final = (0, 1)
"""Seeds of the simulations that say how far values at the border of two codes take a graph."""
_NO_FP4: Final = "ONNX Runtime's CPU has no kernel for FP4, so only graphs packed for it run there"


def write_bundle(
    folder: Path, job: Job, plan: Plan, tensors: Tensors, progress: Progress
) -> Bundle:
    """Write graphs, weights, vectors and manifest of a quantized bundle.

    Args:
        folder: an empty folder.
        job: what is quantized.
        plan: what becomes of every tensor.
        tensors: the codes.
        progress: shows bars.
    """
    source = job.source
    for entry in (*source.manifest.files, *(case.file for case in source.manifest.parity)):
        (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.file(entry), folder / entry.path)
    (folder / "onnx").mkdir()
    graphs, states = _typed_graphs(job, plan, tensors)
    bundle = Bundle(folder, _manifest(job, states))
    manifest = bundle.manifest
    _copy_floats(graphs.values())
    weights = move_out(graphs.values(), WEIGHTS, bundle, progress)
    assert weights is not None
    manifest.weights = weights
    fp4 = any(key.scheme == "nvfp4" for key in plan.weights.values())
    held = set(source.manifest.graphs["step"]) - {CANONICAL} | ({"ort"} if fp4 else set())
    lowerings = tuple(name for name in LOWERINGS if name in held)
    write_graphs(bundle, graphs, lowerings, progress)
    if fp4:
        manifest.lowering = {"chosen": "ort", "why": _NO_FP4, "measured": {}}
    elif set(lowerings) == set(LOWERINGS):
        manifest.lowering = fastest_lowering(bundle, progress)
    for name in source.manifest.graphs.get(UNIFIED, {}):
        plugin_graph(bundle, get_target(name.removeprefix(f"{PLUGIN}-")), progress)
    _record_simulation(bundle, job, plan, tensors, progress)
    (folder / _CONFIG).write_text(_config(job), encoding="utf-8")
    bundle.save()
    return bundle


def _record_simulation(
    bundle: Bundle, job: Job, plan: Plan, tensors: Tensors, progress: Progress
) -> None:
    """Keep what the simulation makes of the recorded prompt, and the errors that are allowed.

    ``prefill`` and ``drift`` are errors against the float model, the case ``simulated`` those
    against the simulation. ONNX Runtime's CPU has its own, since it rounds inputs too. A runner
    that nothing is known of, and any runner where activations are rounded to static scales, may be
    off from the simulation as far as that is from the float model: a value at the border of two
    codes goes either way, and some layers on most values have another neighbour. The kind ``exact``
    is for a runner that computes codes as they are written, with no product in integers.
    """
    source = job.source
    edit = simulated(plan, tensors)

    def on_cpu(model: ir.Model) -> bool:
        changed = edit(model)
        round_inputs(model, plan, tensors)
        return changed

    anywhere = simulations(source, edit, progress)
    here = simulations(source, on_cpu, progress)
    states = state_floors(source, job.state_dtype, progress)
    before = source.manifest.rounding
    made = added(before, {kind: one.errors() for kind, one in anywhere.items()}, states)
    own = added(before, {kind: one.errors() for kind, one in here.items()}, states)
    rounding = {**made, **{of_runner(kind, _CPU): found for kind, found in own.items()}}
    if PREFILL in anywhere:
        exact, rounded = anywhere[PREFILL], here[PREFILL]
        rounding[SIMULATED] = made[PREFILL]
        rounding[EXACT] = added(before, _apart(exact, job, plan, edit, progress), states)[PREFILL]
        if all(one.scheme == FLOAT for one in plan.activations):
            apart = {PREFILL: rounded.against(exact.logits, exact.states)}
            rounding[of_runner(SIMULATED, _CPU)] = added(before, apart, states)[PREFILL]
        _save_vectors(bundle, exact)
    bundle.manifest.rounding = rounding


def _apart(exact: Simulation, job: Job, plan: Plan, edit: Edit, progress: Progress) -> Floors:
    """How far two right ways to compute the codes may be apart by values at the border of two."""
    if all(one.scheme == FLOAT for one in plan.activations):
        return {}
    draws = []
    for seed in _DRAWS:
        moved = shaken(edit, job.source.manifest.precision, seed)
        other = simulations(job.source, moved, progress, (PREFILL,))[PREFILL]
        draws.append(other.against(exact.logits, exact.states))
    return {PREFILL: largest(*draws)}


def _save_vectors(bundle: Bundle, simulation: Simulation) -> None:
    ids = simulation.case.input_ids
    relative = f"parity/{SIMULATED}.npz"
    arrays = dict(simulation.states)
    if simulation.logits is not None:
        arrays["logits"] = simulation.logits
    path = bundle.path / relative
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, input_ids=ids, **arrays)  # type: ignore[arg-type]  # keywords
    entry = ParityEntry(SIMULATED, SIMULATED, bundle.entry(relative), *ids.shape)
    bundle.manifest.parity = (*bundle.manifest.parity, entry)


def _typed_graphs(
    job: Job, plan: Plan, tensors: Tensors
) -> tuple[dict[str, ir.Model], tuple[StateSpec, ...]]:
    """The canonical graphs with codes in the place of weights, and their states."""
    states = job.source.manifest.states
    graphs: dict[str, ir.Model] = {}
    made = states
    for form, graph in job.graphs.items():
        typed = graph.clone()
        write_plan(typed, plan, tensors, Typed())
        raise_opset(typed, plan)
        if job.state_dtype != job.source.manifest.state_dtype:
            made = retype_states(typed, states, job.state_dtype)
        attach_bodies(typed, form)
        graphs[form] = typed
    return graphs, made


def _copy_floats(graphs: Any) -> None:
    """Float weights come along: they are read from the float bundle when they are written."""
    for graph in graphs:
        for value in graph.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = _in_memory(tensor)


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy(), dtype=tensor.dtype),
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def _manifest(job: Job, states: tuple[StateSpec, ...]) -> Any:
    """The float bundle's manifest without what is made anew."""
    source = job.source.manifest
    return replace(
        source,
        states=states,
        state_dtype=job.state_dtype,
        graphs={},
        packed_weights={},
        lowering=dict(source.lowering),
        measured={},
        engines=(),
        versions=tool_versions(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        verified=False,
    )


def _config(job: Job) -> str:
    """Every option as used, beside those of the export."""
    from dataclasses import asdict

    path = job.source.path / _CONFIG
    before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    options = {**asdict(job.options), "state_dtype": job.state_dtype}
    return yaml.safe_dump({**(before or {}), "quantize": options}, sort_keys=False)
