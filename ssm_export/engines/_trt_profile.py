"""The optimization profile of an engine: which sizes it takes, and which it is tuned for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ssm_export import errors
from ssm_export.engines._ports import Port
from ssm_export.errors import SsmExportError
from ssm_export.glossary import BATCH_AXIS, TIME_AXIS


@dataclass(frozen=True)
class Ranges:
    """Smallest, best and largest size of each symbolic axis: the optimization profile."""

    batch: tuple[int, int, int]
    time: tuple[int, int, int]

    @classmethod
    def checked(
        cls, max_batch: int, opt_batch: int, max_chunk: int, opt_chunk: int | None
    ) -> Ranges:
        """Ranges from the options; ``BAD_OPTION`` where they are not in order."""
        best_chunk = min(max_chunk, 512) if opt_chunk is None else opt_chunk
        for name, best, most in (
            ("batch", opt_batch, max_batch),
            ("chunk", best_chunk, max_chunk),
        ):
            if not 1 <= best <= most:
                raise SsmExportError(
                    errors.BAD_OPTION,
                    f"opt-{name} is {best} and max-{name} is {most}",
                    where=f"--max-{name}",
                    fix=f"give 1 <= opt-{name} <= max-{name}",
                )
        return cls((1, opt_batch, max_batch), (1, best_chunk, max_chunk))

    def shapes(self, ports: tuple[Port, ...], where: str) -> dict[str, list[list[int]]]:
        """Smallest, best and largest shape of every graph input."""
        axes = {BATCH_AXIS: self.batch, TIME_AXIS: self.time}
        shapes = {}
        for port in ports:
            unknown = [size for size in port.shape if isinstance(size, str) and size not in axes]
            if unknown:
                raise SsmExportError(
                    errors.GRAPH_INVALID,
                    f"{port} has the axis '{unknown[0]}', known are {sorted(axes)}",
                    where=where,
                    fix="export again",
                )
            shapes[port.name] = [
                [axes[size][k] if isinstance(size, str) else size for size in port.shape]
                for k in range(3)
            ]
        return shapes

    def of(self, ports: tuple[Port, ...]) -> dict[str, list[int]]:
        """The ranges of the axes that the graph has, for the manifest."""
        used = {size for port in ports for size in port.shape}
        both = {BATCH_AXIS: self.batch, TIME_AXIS: self.time}
        return {name: list(sizes) for name, sizes in both.items() if name in used}


def trtexec_command(
    kind: str,
    graph: Path,
    output: Path,
    profiles: list[dict[str, list[list[int]]]],
    capability: tuple[int, int] | None,
    library: Path | None = None,
) -> str:
    """The command of NVIDIA's own tool that builds the same engine.

    Args:
        kind: ``tensorrt-rtx`` or ``tensorrt``.
        graph: the ONNX file.
        output: where the engine goes.
        profiles: per optimization profile: input name -> smallest, best and largest shape.
        capability: the one GPU that TensorRT-RTX builds for, None for all of them.
        library: the plugin library that the graph's nodes need, None where they need none.
    """
    words = ["tensorrt_rtx" if kind == "tensorrt-rtx" else "trtexec"]
    words += [f"--onnx={graph}", f"--saveEngine={output}", "--skipInference"]
    if library is not None:
        words.append(f"--staticPlugins={library}")
    for number, shapes in enumerate(profiles):
        words += [f"--profile={number}"] if len(profiles) > 1 else []
        for flag, index in (("min", 0), ("opt", 1), ("max", 2)):
            spelled = (f"{name}:{'x'.join(map(str, n[index]))}" for name, n in shapes.items())
            words.append(f"--{flag}Shapes={','.join(spelled)}")
    if kind == "tensorrt":
        words.append("--stronglyTyped")
    elif capability is not None:
        words.append(f"--computeCapabilities={capability[0]}{capability[1]}")
    return shlex.join(words)
