"""What is timed, and the goals that the figures are held against.

A row is one call at the sizes of a published model, batch and length included, without weights of
other layers. The floors are counted as follows (b batch, L tokens, D = H·P channels, N states,
G groups, s bytes of a state element, I/O in 16 bit): ::

    Mamba-1 step     2bDN·s + 4DN + 2b(4D + 2N) + 8D bytes
    Mamba-2 step     2bDN·s + 2b(3D + 2GN + H) + 12H bytes
    Mamba-1 prefill  8bLD + 4bLN bytes, or bLD(N + 3) exp2, whatever takes longer
    Mamba-2 prefill  2bL(2D + 2GN + H) + 4bDN bytes
    convolution      4bLD bytes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

EXP2_PER_CLOCK: Final = 16
"""Special functions that one multiprocessor finishes per clock."""

STATE_BYTES: Final = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class Goal:
    """A figure to reach.

    Args:
        measure: ``time`` in µs, ``mamba_ssm`` how many times faster than mamba-ssm, ``width`` time
            per element against that of another row, ``copy`` share of the copy bandwidth in %.
        must: what has to be reached.
        stretch: what would be good; None where the goal names no figure.
    """

    measure: str
    must: float
    stretch: float | None = None

    @property
    def smaller_is_better(self) -> bool:
        """Whether the figure has to stay below the goal."""
        return self.measure in ("time", "width")

    def verdict(self, value: float | None) -> str | None:
        """``stretch``, ``must`` or ``missed``; None without a figure."""
        if value is None:
            return None
        sign = 1 if self.smaller_is_better else -1
        if self.stretch is not None and sign * value <= sign * self.stretch:
            return "stretch"
        return "must" if sign * value <= sign * self.must else "missed"


@dataclass(frozen=True)
class Row:
    """One call that is timed.

    Args:
        name: what a reader calls it.
        op: the operator.
        sizes: letter to size, B and T included.
        state: ONNX type of the state; the I/O is float16.
        goals: what its figures are held against; may be none.
        against: name of the row that ``width`` compares with.
    """

    name: str
    op: str
    sizes: Mapping[str, int]
    state: str = "float32"
    goals: tuple[Goal, ...] = field(default=())
    against: str | None = None

    @property
    def step(self) -> bool:
        """Whether it is one token."""
        return self.sizes["T"] == 1

    @property
    def elements(self) -> int:
        """Elements of the output."""
        width = self.sizes["D"] if "D" in self.sizes else self.sizes["H"] * self.sizes["P"]
        return self.sizes["B"] * self.sizes["T"] * width

    def floor(self, bandwidth: float, exp2_rate: float | None) -> tuple[float, str]:
        """The least possible time in µs and what sets it.

        Args:
            bandwidth: bytes per second.
            exp2_rate: exp2 per second of the whole GPU; None where it is not known.
        """
        memory = self.bytes_moved() / bandwidth * 1e6
        if self.op == "SelectiveScan" and not self.step and exp2_rate:
            b, length, channels, n = (self.sizes[letter] for letter in "BTDN")
            special = b * length * channels * (n + 3) / exp2_rate * 1e6
            return max((memory, "memory"), (special, "exp2"))
        return memory, "memory"

    def bytes_moved(self) -> int:
        """Bytes that have to be moved, by the formulas above."""
        sizes, s = self.sizes, STATE_BYTES[self.state]
        b, length = sizes["B"], sizes["T"]
        if self.op == "CausalConv1d":
            return 4 * b * length * sizes["D"]
        if self.op == "SelectiveScan":
            d, n = sizes["D"], sizes["N"]
            if self.step:
                return 2 * b * d * n * s + 4 * d * n + 2 * b * (4 * d + 2 * n) + 8 * d
            return 8 * b * length * d + 4 * b * length * n
        h, n, groups = sizes["H"], sizes["N"], sizes["G"]
        d = h * sizes["P"]
        if self.step:
            return 2 * b * d * n * s + 2 * b * (3 * d + 2 * groups * n + h) + 12 * h
        return 2 * b * length * (2 * d + 2 * groups * n + h) + 4 * b * d * n


def _mamba1(batch: int, length: int, channels: int = 5120) -> dict[str, int]:
    return {"B": batch, "T": length, "D": channels, "N": 16}


def _mamba2(batch: int, length: int, heads: int = 80, **sizes: int) -> dict[str, int]:
    return {"B": batch, "T": length, "H": heads, "P": 64, "G": 1, "N": 128, **sizes}


def _conv(batch: int, length: int, channels: int) -> dict[str, int]:
    return {"B": batch, "T": length, "D": channels, "K": 4}


_ANY_STEP: Final = (Goal("time", 4.0, 2.5),)
_COPY: Final = (Goal("copy", 80.0),)
_FASTER: Final = Goal("mamba_ssm", 1.5, 2.5)
_NEMOTRON: Final[dict[str, Any]] = {"heads": 128, "G": 8}

ROWS: Final = (
    Row(
        "Mamba-2 step, 2.7b, b=64", "SsdScan", _mamba2(64, 1), goals=(Goal("time", 150.0, 125.0),)
    ),
    Row(
        "Mamba-2 step, 2.7b, b=64, fp16 state", "SsdScan", _mamba2(64, 1), "float16",
        (Goal("time", 75.0, 63.0),),
    ),
    Row("Mamba-2 step, 2.7b, b=1", "SsdScan", _mamba2(1, 1), goals=_ANY_STEP),
    Row("Mamba-2 step, 130m, b=1", "SsdScan", _mamba2(1, 1, 24), goals=_ANY_STEP),
    Row("Mamba-1 step, 2.8b, b=1", "SelectiveScan", _mamba1(1, 1), goals=_ANY_STEP),
    Row("Mamba-1 step, 130m, b=1", "SelectiveScan", _mamba1(1, 1, 1536), goals=_ANY_STEP),
    Row("conv step, Mamba-1 2.8b, b=1", "CausalConv1d", _conv(1, 1, 5120), goals=_ANY_STEP),
    Row("conv step, Mamba-2 2.7b, b=1", "CausalConv1d", _conv(1, 1, 5376), goals=_ANY_STEP),
    Row(
        "Mamba-1 step, 2.8b, b=64", "SelectiveScan", _mamba1(64, 1),
        goals=(Goal("time", 20.0, 17.0),),
    ),
    *(
        Row(
            f"SSD prefill, 2.7b, b=1, L={length}", "SsdScan", _mamba2(1, length),
            goals=(Goal("time", must, stretch), _FASTER),
        )
        for length, must, stretch in (
            (2048, 70.0, 40.0), (4096, 125.0, 70.0), (16384, 430.0, 250.0),
        )
    ),
    Row("SSD prefill, H=128 P=64 G=8, b=1, L=2048", "SsdScan", _mamba2(1, 2048, **_NEMOTRON)),
    Row(
        "SSD prefill, H=128 P=80 G=8, b=1, L=2048", "SsdScan", _mamba2(1, 2048, P=80, **_NEMOTRON),
        goals=(Goal("width", 1.25, 1.0),), against="SSD prefill, H=128 P=64 G=8, b=1, L=2048",
    ),
    Row(
        "Mamba-1 scan, 2.8b, b=1, L=2048", "SelectiveScan", _mamba1(1, 2048),
        goals=(Goal("time", 110.0, 75.0), Goal("mamba_ssm", 1.0)),
    ),
    *(
        Row(
            f"conv + SiLU, D={d}, b=1, L={length}", "CausalConv1d", _conv(1, length, d), goals=_COPY
        )
        for d, length in ((5120, 2048), (5376, 4096), (5376, 16384))
    ),
)  # fmt: skip
"""Every line of the goals, in their order; the row of head width 64 is what 80 is held against."""
