"""One node as an engine runs it: the operator's call, its plan, and a run through the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from fake_gpu import FakeGpu
from kernel_calls import DEVICE, ORIN, call_of, make_plan, to_numpy, to_torch
from one_call import rounded
from plugin_harness import DYNAMIC, FieldValue, Harness, Plugin, Tensor

from ssm_export.ops import OpSpec
from ssm_export_plugins.plan import Operand, Plan

GREATEST = {"B": 4, "T": 128}


class Memory(Protocol):
    """Gives the addresses of tensors that kernels may then read and write."""

    def address(self, tensor: torch.Tensor) -> int: ...


def plan_of(
    spec: OpSpec, kind: str = "float32", omit: Sequence[str] = (), **attributes: Any
) -> Plan:
    """The plan of one of our operators at its own sizes, for any B and T."""
    ragged = "sequence_lengths" not in omit
    inputs = spec.make_inputs(np.random.default_rng(0), spec.sizes, omit, ragged)
    types = {"T": kind, "S": "float32"}
    return make_plan(spec, call_of(spec, inputs, types, **attributes), ORIN)


def fields_of(plan: Plan, kernels: bytes) -> dict[str, FieldValue]:
    """The fields that a parser makes of a stamped node."""
    return {**plan.attributes, "kernels": kernels + b"\0"}


def tensor_of(operand: Operand, sizes: Mapping[str, int]) -> Tensor:
    """An operand at given sizes."""
    shape = tuple(n if isinstance(n, int) else sizes[n] for n in operand.shape)
    return Tensor(operand.type, shape)


def in_profile(
    operand: Operand, least: Mapping[str, int], most: Mapping[str, int] = GREATEST
) -> Tensor:
    """An operand of dynamic sizes in an optimization profile."""
    sizes = [(n, n, n) if isinstance(n, int) else (DYNAMIC, least[n], most[n])
             for n in operand.shape]  # fmt: skip
    return Tensor(operand.type, *(tuple(axis) for axis in zip(*sizes, strict=True)))


@dataclass
class Node:
    """A node of an engine: built for a profile, attached to a context, run.

    ``layout`` names the node's inputs in order, None for one that is left out.
    """

    harness: Harness
    gpu: Memory
    plan: Plan
    plugin: Plugin
    layout: tuple[str | None, ...] = ()
    workspace_bytes: int = 0
    workspaces: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = self.layout or tuple(operand.name for operand in self.plan.inputs)

    def _inputs(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        absent = Tensor("float32", ())
        return [absent if name is None else tensors[name] for name in self.layout]

    def build(self, most: Mapping[str, int] = GREATEST) -> None:
        """Everything that the builder asks, in its order."""
        least = dict.fromkeys(most, 1)
        inputs = self._inputs({o.name: in_profile(o, least, most) for o in self.plan.inputs})
        outputs = [in_profile(o, least, most) for o in self.plan.outputs]
        assert self.plugin.outputs() == len(outputs)
        wanted = [o.type for o in self.plan.outputs]
        given, count = [one.type for one in inputs], len(outputs)
        assert self.plugin.output_types(given, count) == wanted, self.harness.log()
        assert self.plugin.output_shapes(inputs, count) is not None, self.harness.log()
        tensors = [*inputs, *outputs]
        assert all(self.plugin.supports(i, tensors, len(inputs)) for i in range(len(tensors)))
        assert self.plugin.configure(inputs, outputs), self.harness.log()
        self.workspace_bytes = self.plugin.workspace(inputs, outputs)

    def attach(self) -> Node:
        """The node of one execution context."""
        attached = self.plugin.attach()
        assert attached is not None, self.harness.log()
        node = Node(self.harness, self.gpu, self.plan, attached, self.layout, self.workspace_bytes)
        size = self.workspace_bytes + 256
        node.workspaces.append(torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE))
        return node

    def described(self, sizes: Mapping[str, int]) -> tuple[list[Tensor], list[Tensor]]:
        given = {o.name: tensor_of(o, sizes) for o in self.plan.inputs}
        return self._inputs(given), [tensor_of(o, sizes) for o in self.plan.outputs]

    def run(
        self,
        tensors: Mapping[str, torch.Tensor],
        sizes: Mapping[str, int],
        *,
        in_place: Mapping[str, str] | None = None,
        stream: int = 0,
        announce: bool = True,
    ) -> dict[str, torch.Tensor] | None:
        """One enqueue on poisoned outputs; None where it fails.

        ``in_place``: output to the input whose buffer it is. ``announce``: call onShapeChange.
        """
        inputs, outputs = self.described(sizes)
        if announce and not self.plugin.shapes(inputs, outputs):
            return None
        made = {}
        for operand, one in zip(self.plan.outputs, outputs, strict=True):
            source = (in_place or {}).get(operand.name)
            made[operand.name] = (
                tensors[source]
                if source
                else torch.full(
                    one.shape, float("nan"), dtype=getattr(torch, operand.type), device=DEVICE
                )
            )
        address = self.gpu.address
        read = [0 if name is None else address(tensors[name]) for name in self.layout]
        written = [address(made[operand.name]) for operand in self.plan.outputs]
        space = address(self.workspaces[0])
        done = self.plugin.enqueue(inputs, outputs, read, written, space + -space % 256, stream)
        return made if done else None


def feeds_of(
    spec: OpSpec, kind: str, sizes: Mapping[str, int], omit: Sequence[str] = (), seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """Inputs in the types of a call, as arrays and as tensors."""
    ragged = "sequence_lengths" not in omit
    rng = np.random.default_rng(seed)
    inputs = spec.make_inputs(rng, {**spec.sizes, **sizes}, omit, ragged)
    feeds = rounded(spec, inputs, {"T": kind, "S": "float32"})
    return feeds, {name: to_torch(value) for name, value in feeds.items()}


def same_buffer(spec: OpSpec) -> dict[str, str]:
    """Every state to the input that it continues."""
    states = [port.name for port in spec.outputs if "T" not in port.axes]
    return {name: name.replace("present", "past") for name in states}


def arrays(made: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: to_numpy(value) for name, value in made.items()}


def make_node(
    harness: Harness, gpu: FakeGpu, plan: Plan, kernels: bytes | None = None, **fields: FieldValue
) -> Node:
    """A node of one of our operators, created as a parser does."""
    section = gpu.section(plan) if kernels is None else kernels
    plugin = harness.create(plan.op, {**fields_of(plan, section), **fields})
    assert plugin is not None, harness.log()
    return Node(harness, gpu, plan, plugin)
