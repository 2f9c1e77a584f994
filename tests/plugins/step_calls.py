"""Calls of a step graph, with and without optional inputs, for the tests of Python plugins."""

from __future__ import annotations

from ssm_export.ops import Call, OpSpec, all_ops
from ssm_export_plugins import kernels
from ssm_export_plugins.plan import Chip

CHIP = Chip((8, 9), 101_376, 58)


def step_call(spec: OpSpec, types: dict[str, str], omit: tuple[str, ...] = ()) -> Call:
    """A call of one token at the operator's default sizes."""
    sizes = {letter: size for letter, size in spec.sizes.items() if letter != "B"}
    present = frozenset(port.name for port in spec.inputs if port.name not in omit)
    return Call(present, dict(spec.attributes), {**sizes, "T": 1}, types)


def step_calls() -> list[tuple[OpSpec, Call]]:
    """Every operator of ours that has kernels, called whole and without what is optional."""
    found = []
    for spec in all_ops().values():
        if not kernels.has_kernels(spec.name):
            continue
        optional = tuple(port.name for port in spec.inputs if port.optional)
        found.append((spec, step_call(spec, {"T": "float16", "S": "float32"}, optional)))
        found.append((spec, step_call(spec, {"T": "bfloat16", "S": "float16"})))
    return found
