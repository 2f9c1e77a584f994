"""Ahead-of-time compilation: operator calls to machine code, on a machine without a GPU.

:func:`compile_calls` asks the kernels of each operator for their plans, best first, and compiles
the first one that fits the chip; its plan and machine code become one section of a kernel image
(:mod:`ssm_export_plugins.container`). The compiler runs in child processes
(:mod:`ssm_export_plugins.aot_worker`), because Triton reads its settings from the environment and
because a process that interprets kernels cannot compile them. What was compiled is kept in
``$XDG_CACHE_HOME/ssm-export/kernels`` (``~/.cache/…``), under a hash of all that it depends on.
Equal inputs give equal bytes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ssm_export import errors
from ssm_export.errors import SsmExportError, missing_package
from ssm_export.lowering.bodies import call_key
from ssm_export.ops import Call, OpSpec
from ssm_export.progress import SILENT, Progress
from ssm_export_plugins import aot_cache
from ssm_export_plugins.aot_children import compile_in_children
from ssm_export_plugins.plan import Chip, Plan

if TYPE_CHECKING:
    from ssm_export.targets import Target

CAPABILITIES: Final = (
    (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (11, 0), (12, 0), (12, 1),
)  # fmt: skip
"""Compute capabilities that kernels are compiled for."""


@dataclass(frozen=True)
class Compiled:
    """A call, compiled for a chip.

    Args:
        spec, call, chip: what was compiled.
        choice: which of the operator's plans was taken, 0 for the best.
        blob: one section of a kernel image.
        report: ``op``, ``label`` of the plan, ``kernels`` (``name``, ``kind``, ``capability``,
            ``registers``, ``shared``, ``spills``, ``threads``, ``bytes``, ``seconds`` each),
            ``refused`` (``label`` and ``reason`` each), ``bytes`` of the section.
    """

    spec: OpSpec
    call: Call
    chip: Chip
    choice: int
    blob: bytes
    report: Mapping[str, Any]

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan that was taken; imports the kernels, and Triton with them."""
        from ssm_export_plugins import kernels

        made = kernels.plans(self.spec, self.call, self.chip)
        return next(itertools.islice(made, self.choice, None))


def chip_of(target: Target) -> Chip:
    """What kernels depend on of a target's GPU.

    Raises:
        SsmExportError: ``BAD_OPTION`` for a target that stands for many GPUs, ``BAD_CONFIG_FILE``
            for one whose file lacks the size of its shared memory or its multiprocessors.
    """
    capability = target.one_chip()
    facts = {
        "shared_memory_per_block_kb": target.shared_memory_per_block_kb,
        "multiprocessors": target.multiprocessors,
    }
    for key, value in facts.items():
        if not value:
            raise SsmExportError(
                errors.BAD_CONFIG_FILE,
                f"the target {target.name} has no '{key}', which its kernels depend on",
                where=f"configs/targets/{target.name}.yaml",
                fix=f"add {key}: N, as the CUDA programming guide or the data sheet has it",
            )
    shared = facts["shared_memory_per_block_kb"] or 0
    return Chip(capability, shared * 1024, facts["multiprocessors"] or 0)


def compile_calls(
    calls: Sequence[tuple[OpSpec, Call]],
    chip: Chip,
    *,
    ptx: bool = False,
    progress: Progress = SILENT,
) -> list[Compiled]:
    """Compile the kernels of operator calls; equal calls are compiled once.

    A plan that needs more shared memory than a block of the chip may have, or that Triton cannot
    compile, is refused and the next one taken; so is one that spills registers, unless every
    other one is refused or spills more.

    Args:
        calls: operators and how they are called.
        chip: what to compile for.
        ptx: add PTX for capability 8.0, which drivers of later chips can compile.
        progress: gets a bar, a step for each different call.

    Returns:
        One for each call, the same object for equal calls.

    Raises:
        SsmExportError: ``MISSING_PACKAGE`` without Triton, ``BAD_OPTION`` for a chip that there is
            no compiler for, ``KERNEL_UNSUPPORTED``, ``KERNEL_COMPILE_FAILED``.
    """
    if tuple(chip.capability) not in CAPABILITIES:
        known = ", ".join(f"{major}.{minor}" for major, minor in CAPABILITIES)
        major, minor = chip.capability
        raise SsmExportError(
            errors.BAD_OPTION,
            f"no kernels are made for compute capability {major}.{minor}",
            fix=f"take a target of compute capability {known}",
        )
    triton = triton_version()
    keys = [call_key(spec.name, call) for spec, call in calls]
    different = dict(zip(keys, calls, strict=True))
    made: dict[tuple[object, ...], aot_cache.Entry] = {}
    hashes = {
        key: aot_cache.digest(spec.name, call, chip, ptx, triton)
        for key, (spec, call) in different.items()
    }
    bar = progress.task("Compiling kernels", total=len(different))
    for key in different:
        found = aot_cache.load(hashes[key])
        if found is not None:
            made[key] = found
            bar.advance()
    missing = [key for key in different if key not in made]
    requests = [
        aot_cache.request(different[k][0].name, different[k][1], chip, ptx) for k in missing
    ]
    for index, entry in compile_in_children(requests):
        aot_cache.store(hashes[missing[index]], entry)
        made[missing[index]] = entry
        bar.advance()
    compiled = {
        key: Compiled(spec, call, chip, made[key].choice, made[key].blob, made[key].report)
        for key, (spec, call) in different.items()
    }
    return [compiled[key] for key in keys]


def triton_version() -> str:
    """The version of Triton.

    Raises:
        SsmExportError: ``MISSING_PACKAGE`` where it is not installed.
    """
    from importlib import metadata, util

    try:
        if util.find_spec("triton") is not None:
            return metadata.version("triton")
    except (metadata.PackageNotFoundError, ValueError):
        pass
    raise missing_package("triton", "kernels", "compiling GPU kernels")
