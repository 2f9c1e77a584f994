"""The child process that compiles: one JSON request per line on stdin, one answer per line.

An answer holds the number of the plan that was taken, its section in base64 and the report; or an
error. Whatever Triton prints goes to stderr, except what NVIDIA's assembler says of registers and
spills, which is read from it. The parent sets the environment; see
:mod:`ssm_export_plugins.aot_children`.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ssm_export
from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec
from ssm_export_plugins import kernels, model_calls
from ssm_export_plugins.aot_cache import call_of
from ssm_export_plugins.container import Image, section_of, write
from ssm_export_plugins.plan import TRITON_TYPES, Chip, Kernel, Plan

GENERIC: Final = (8, 0)
"""Capability of PTX for later chips. From 9.0 on Triton's PTX is for one chip only."""
GENERIC_PTX_VERSION: Final = 80
"""PTX 8.0, which every driver from CUDA 12.0 on compiles."""
_ENTRY: Final = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)", re.DOTALL)
_THREADS: Final = re.compile(r"^\.(?:req|max)ntid\s+(\d+)", re.MULTILINE)
_REGISTERS: Final = re.compile(r"Used (\d+) registers")
_SPILLS: Final = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


class RefusedError(Exception):
    """A kernel that does not fit the chip or does not compile; says why."""


@dataclass(frozen=True)
class Machine:
    """A compiled kernel.

    Args:
        image: with index 0.
        spills: bytes of registers that are stored to memory and loaded from it.
        seconds: how long the compiler took.
    """

    image: Image
    spills: int
    seconds: float


class Compiler:
    """Compiles kernels for one chip, each once."""

    def __init__(self, chip: Chip, ptx: bool) -> None:
        self._chip = chip
        self._kinds = [(chip.capability, "cubin")] + ([(GENERIC, "ptx")] if ptx else [])
        self._made: dict[tuple[Any, ...], Machine | RefusedError] = {}

    def plan(self, plan: Plan) -> list[tuple[int, Machine]]:
        """The machine code of a plan's kernels, with the kernels' positions.

        Raises:
            RefusedError: one of them does not fit.
        """
        return [
            (index, self._kernel(kernel, capability, kind))
            for index, kernel in enumerate(plan.kernels())
            for capability, kind in self._kinds
        ]

    def _kernel(self, kernel: Kernel, capability: tuple[int, int], kind: str) -> Machine:
        key = (*kernel.key, capability, kind)
        if key not in self._made:
            try:
                self._made[key] = self._compile(kernel, capability, kind)
            except RefusedError as error:
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, RefusedError):
            raise made
        return made

    def _compile(self, kernel: Kernel, capability: tuple[int, int], kind: str) -> Machine:
        began = time.perf_counter()
        compiled, log = triton_compile(kernel, capability, generic=kind == "ptx")
        facts, ptx = compiled.metadata, compiled.asm["ptx"]
        entry = _ENTRY.search(ptx)
        registers, spills = _REGISTERS.findall(log), _SPILLS.findall(log)
        if entry is None or not registers or not spills:
            raise RefusedError(f"{kernel.name}: the assembler's messages cannot be read")
        extra = entry[2].count(".param") - len(kernel.pointers) - len(kernel.integers)
        if extra < 0 or facts.global_scratch_size or getattr(facts, "profile_scratch_size", 0):
            raise RefusedError(f"{kernel.name} needs scratch memory of the runtime")
        if facts.shared > self._chip.shared_memory:
            raise RefusedError(
                f"{kernel.name} needs {facts.shared} bytes of shared memory per block, "
                f"the chip has {self._chip.shared_memory}"
            )
        threads = _THREADS.search(ptx)
        image = Image(
            index=0,
            entry=entry[1],
            kind=kind,
            capability=10 * capability[0] + capability[1],
            data=ptx.encode() + b"\0" if kind == "ptx" else compiled.asm["cubin"],
            shared=facts.shared,
            threads=int(threads[1]) if threads else 32 * facts.num_warps,
            registers=max(map(int, registers)),
            extra=extra,
        )
        spilled = sum(int(stores) + int(loads) for stores, loads in spills)
        return Machine(image, spilled, round(time.perf_counter() - began, 3))


def triton_compile(
    kernel: Kernel, capability: tuple[int, int], generic: bool = False
) -> tuple[Any, str]:
    """Triton's compiled kernel, and what the assembler said of it.

    Args:
        kernel: the variant.
        capability: what to compile for.
        generic: lower the version of the PTX to :data:`GENERIC_PTX_VERSION`.

    Raises:
        RefusedError: it does not compile.
        SsmExportError: ``KERNEL_COMPILE_FAILED`` when this Triton cannot compile for the chip.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    aligned: dict[tuple[int], Any] = {}
    for position, name in enumerate(kernel.function.arg_names):
        if name in kernel.pointers:
            signature[name] = "*" + TRITON_TYPES[kernel.pointers[name]]
            aligned[(position,)] = [["tt.divisibility", 16]]
        elif name in kernel.integers:
            signature[name] = "i32"
        else:
            signature[name] = "constexpr"
            constants[(position,)] = kernel.constants[name]
    options: dict[str, Any] = {
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "enable_fp_fusion": True,
    }
    if generic:
        options["ptx_version"] = GENERIC_PTX_VERSION
    major, minor = capability
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            source = ASTSource(kernel.function, signature, constants, aligned)
            target = GPUTarget("cuda", 10 * major + minor, 32)
            compiled = triton.compile(source, target=target, options=options)
    except Exception as error:  # Triton's compiler raises what its passes raise
        text = str(error).strip()
        sys.stderr.write(f"{kernel.name}: {text}\n")
        if "is not defined for option 'gpu-name'" in text:
            raise SsmExportError(
                errors.KERNEL_COMPILE_FAILED,
                f"Triton {triton.__version__} has no assembler for compute capability "
                f"{major}.{minor}",
                where=kernel.name,
                fix="pip install --upgrade 'ssm-export[kernels]'",
            ) from error
        lines = text.splitlines() or [""]
        raise RefusedError(
            f"{kernel.name} does not compile ({type(error).__name__}: {lines[-1].strip()})"
        ) from error
    return compiled, log.getvalue()


def compile_call(spec: OpSpec, call: Call, chip: Chip, ptx: bool) -> dict[str, Any]:
    """The answer for one call: the first plan that fits without spilling, else the one that
    spills least. PTX has no say in it: it is for chips that are not known yet.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED``, ``KERNEL_COMPILE_FAILED``.
    """
    if not kernels.has_kernels(spec.name):
        raise SsmExportError(
            errors.KERNEL_UNSUPPORTED,
            "there are no GPU kernels for this operator",
            where=spec.name,
            fix="--lowering native",
        )
    compiler = Compiler(chip, ptx)
    refused: dict[int, dict[str, str]] = {}
    least: tuple[int, int, Plan, list[tuple[int, Machine]]] | None = None
    for choice, plan in enumerate(kernels.plans(spec, call, chip)):
        try:
            machines = compiler.plan(plan)
        except RefusedError as error:
            refused[choice] = {"label": plan.label, "reason": str(error)}
            continue
        cubins = [machine for _, machine in machines if machine.image.kind == "cubin"]
        spills = sum(machine.spills for machine in cubins)
        if least is None or spills < least[0]:
            least = spills, choice, plan, machines
        if not spills:
            break
        worst = max(cubins, key=lambda machine: machine.spills)
        reason = f"{worst.image.entry} spills {worst.spills} bytes of registers"
        refused[choice] = {"label": plan.label, "reason": reason}
    if least is None:
        raise _none_fits(spec, chip, list(refused.values()))
    _, choice, plan, machines = least
    refused.pop(choice, None)
    return _answer(choice, plan, machines, list(refused.values()))


def _none_fits(spec: OpSpec, chip: Chip, refused: list[dict[str, str]]) -> SsmExportError:
    major, minor = chip.capability
    reasons = list(dict.fromkeys(entry["reason"] for entry in refused))
    if not reasons:
        return SsmExportError(
            errors.KERNEL_UNSUPPORTED, "no kernel takes this call", where=spec.name
        )
    return SsmExportError(
        errors.KERNEL_COMPILE_FAILED,
        f"none of {len(refused)} configurations fits compute capability {major}.{minor}: "
        + "; ".join(reasons),
        where=spec.name,
        fix="--lowering native",
    )


def _answer(
    choice: int, plan: Plan, machines: list[tuple[int, Machine]], refused: list[dict[str, str]]
) -> dict[str, Any]:
    from dataclasses import replace

    import triton

    images = [replace(machine.image, index=index) for index, machine in machines]
    blob = write(section_of(plan, images, (ssm_export.__version__, triton.__version__)))
    report = {
        "op": plan.op,
        "label": plan.label,
        "kernels": [_kernel_report(machine) for _, machine in machines],
        "refused": refused,
        "bytes": len(blob),
    }
    return {"choice": choice, "blob": base64.b64encode(blob).decode("ascii"), "report": report}


def _kernel_report(machine: Machine) -> dict[str, Any]:
    image = machine.image
    return {
        "name": image.entry,
        "kind": image.kind,
        "capability": f"{image.capability // 10}.{image.capability % 10}",
        "registers": image.registers,
        "shared": image.shared,
        "spills": machine.spills,
        "threads": image.threads,
        "bytes": len(image.data),
        "seconds": machine.seconds,
    }


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is answered to a request."""
    op, call, chip, ptx = call_of(request)
    try:
        return compile_call(model_calls.operator_called(op), call, chip, ptx)
    except SsmExportError as error:
        return {"error": error.as_json()}


def main() -> None:
    """Answer requests until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(answer(json.loads(line))) + "\n")
        out.flush()
