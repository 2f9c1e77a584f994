"""SsdScan on a GPU: how the kernels of ``_ssd_prefill`` and ``_ssd_step`` compute a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec
from ssm_export_plugins.expressions import cdiv, constant, minimum, symbol
from ssm_export_plugins.kernels._ssd_prefill import ENDS, REST, WHOLE, ssd_scan_prefill
from ssm_export_plugins.kernels._ssd_step import ssd_scan_step
from ssm_export_plugins.plan import ALWAYS, Builder, Case, Chip, Launch, Plan, Workspace

MAX_STATES = 256
"""Largest N: a program holds all of N for its part of the head width in registers."""

MAX_TILE = 128 * 128
"""Largest part of a head's state in one program."""

MIN_SEGMENT = 256
"""Tokens of a segment at least, so that its walk outweighs the reading of its first state."""

MAX_SEGMENTS = 8
"""A segment reads the end states of all those before it."""


@dataclass(frozen=True)
class Choice:
    """How a prefill is cut.

    Args:
        chunk: tokens that go through matrix products together.
        warps, stages: Triton's options.
        across, along: pieces of the head width and of the states in one program.
    """

    chunk: int
    warps: int
    stages: int
    across: tuple[int, int]
    along: tuple[int, int]

    @property
    def label(self) -> str:
        """For reports."""
        across, along = ("+".join(str(n) for n in cut if n) for cut in (self.across, self.along))
        return f"q{self.chunk}w{self.warps}s{self.stages}p{across}n{along}"


def pieces(width: int) -> tuple[int, int]:
    """One or two powers of two from 16 up that cover a width: 64 → 64; 80 → 64 + 16.

    The second is 0 where one covers the width with no more padding than two.
    """
    whole = _power_above(width)
    if whole == 16:
        return 16, 0
    second = _power_above(width - whole // 2)
    return (whole, 0) if whole // 2 + second >= whole else (whole // 2, second)


def _power_above(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _choices(kind: str, width: int, states: int, chip: Chip) -> tuple[Choice, ...]:
    """Ways to cut a prefill, best first; README.md says why."""
    warpgroups = (9, 0) <= chip.capability < (12, 0)
    across, along = pieces(width), pieces(states)
    if kind == "float32":
        if along[1] == 0 and along[0] >= 128:
            along = (along[0] // 2, along[0] // 2)
        return (Choice(16, 4, 1, (16, 0), along),)
    if warpgroups and 0 < along[1] < 64:
        along = (2 * along[0], 0)
    if sum(across) * sum(along) > MAX_TILE:
        across = (64, 0)
    warps = 4 if sum(across) * sum(along) <= 80 * 128 else 8
    if warpgroups:
        return (Choice(64, warps, 2, across, along),)
    return (Choice(32, warps, 2, across, along),)


@dataclass(frozen=True)
class _Scan:
    """One call of either recurrence: what all its launches share.

    Args:
        build: makes the launches.
        chip: what they are for.
        shared: tensors and constants that both kernels take.
        kind, state: ONNX type names of inputs and state.
    """

    build: Builder
    chip: Chip
    shared: Mapping[str, Any]
    kind: str
    state: str

    def cases(self) -> Iterator[tuple[str, tuple[Case, ...]]]:
        """Label and cases of every choice."""
        if self.build.size("T") == 1:
            yield "step", (Case(ALWAYS, (self._step(),)),)
            return
        for choice in _choices(self.kind, self.shared["P"], self.shared["N"], self.chip):
            first = Case(symbol("T").equals(1), (self._step(),))
            yield choice.label, (first, *self._prefill(choice))

    def _step(self) -> Launch:
        """One token: 8 KB of state to a block, so that few heads fill the chip too."""
        width, states = self.shared["P"], self.shared["N"]
        block_n = 1 << (states - 1).bit_length()
        elements = 4096 if self.state == "float16" else 2048
        block_p = max(1, min(elements // block_n, 1 << (width - 1).bit_length()))
        return self.build.launch(
            ssd_scan_step,
            (cdiv(width, block_p), self.shared["H"], symbol("B")),
            BLOCK_P=block_p,
            BLOCK_N=block_n,
            **self.shared,
        )

    def _prefill(self, choice: Choice) -> Iterator[Case]:
        """The case that splits time, where heads alone may not fill the chip; then the other."""
        B, T = symbol("B"), symbol("T")
        heads, width, states = (self.shared[letter] for letter in "HPN")
        parts = -(-width // sum(choice.across))
        common = {
            **self.shared,
            "T": T,
            "Q": choice.chunk,
            **dict(zip(("P0", "P1"), choice.across, strict=True)),
            **dict(zip(("N0", "N1"), choice.along, strict=True)),
            "PARTS": parts,
            "TWICE": self.chip.capability < (9, 0) or self.chip.capability >= (12, 0),
            "num_warps": choice.warps,
            "num_stages": choice.stages,
        }
        programs = self.chip.multiprocessors * (8 // choice.warps)
        if 2 * heads * parts <= programs:
            longest = minimum(T // MIN_SEGMENT, MAX_SEGMENTS)
            segments = minimum(longest, constant(programs) // (B * (heads * parts)))
            slots = minimum(longest * B * heads, programs // parts)
            ends = Workspace("ends", "float32", slots * (width * states))
            scratch = {
                "ends": ends,
                "totals": Workspace("totals", "float32", slots),
                "span": cdiv(cdiv(T, choice.chunk), segments) * choice.chunk,
            }
            unused = {"C": None, "D": None, "y": None, "present": None}
            passes = (
                self.build.launch(
                    ssd_scan_prefill,
                    (heads * parts, segments - 1, B),
                    PASS=ENDS,
                    **{**common, **scratch, **unused},
                ),
                self.build.launch(
                    ssd_scan_prefill,
                    (heads * parts, segments, B),
                    PASS=REST,
                    **{**common, **scratch, "past": None},
                ),
            )
            yield Case(constant(1) < segments, passes)
        whole = self.build.launch(
            ssd_scan_prefill,
            (heads * parts, 1, B),
            PASS=WHOLE,
            ends=None,
            totals=None,
            span=T,
            **common,
        )
        yield Case(ALWAYS, (whole,))


def plans(spec: OpSpec, call: Call, chip: Chip) -> Iterator[Plan]:
    """Plans of one call; see :func:`ssm_export_plugins.kernels.plans`.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED`` naming the operator and the tensor.
    """
    build = Builder(spec, call)
    names = ("x", "dt", "A", "B", "C", "D", "dt_bias", "past", "y", "present")
    groups = build.size("G")
    scan = _scan(
        build,
        chip,
        tensors={**{name: name for name in names}, "lengths": "sequence_lengths"},
        heads=build.size("H"),
        key_heads=groups,
        query_heads=groups,
        width=build.size("P"),
        states=build.size("N"),
        **scan_constants(call),
    )
    for label, cases in scan.cases():
        yield build.plan(*cases, label=label)


def linear_attention_cases(
    build: Builder,
    chip: Chip,
    *,
    query: str,
    key: str,
    value: str,
    decay: str | None,
    past: str | None,
    output: str,
    present: str,
    heads: int,
    query_heads: int,
    key_heads: int,
    key_width: int,
    value_width: int,
    scale: float,
    lengths: str | None = None,
) -> Iterator[tuple[str, tuple[Case, ...]]]:
    """Label and cases of every way to compute linear attention with one decay per head.

    ``S_t = exp(g_t) S_{t-1} + k_t ⊗ v_t`` and ``o_t = scale · q_tᵀ S_t``: rule ``gated``, or rule
    ``linear`` where ``decay`` is None. Source: the ONNX operator LinearAttention, opset 27.

    Args:
        build: makes the launches.
        chip: what they are for.
        query: port of (B, T, query_heads · key_width), packed or not.
        key: port of (B, T, key_heads · key_width).
        value: port of (B, T, heads · value_width).
        decay: port of g (B, T, heads), or None.
        past: port of the state (B, heads, key_width, value_width), or None for zeros.
        output: port of (B, T, max(heads, query_heads) · value_width).
        present: port of the state, which may be the buffer of past.
        heads: states per row.
        query_heads: a divisor of ``heads``, or a multiple of it (queries share a state).
        key_heads: a divisor of ``heads``.
        key_width, value_width: of one head.
        scale: of the output.
        lengths: port of the valid tokens of each row, or None.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED`` naming the operator and the tensor.
    """
    tensors: dict[str, str | Workspace | None] = {
        "x": value, "dt": decay, "A": None, "B": key, "C": query, "D": None, "dt_bias": None,
        "past": past, "lengths": lengths, "y": output, "present": present,
    }  # fmt: skip
    scan = _scan(
        build,
        chip,
        tensors=tensors,
        heads=heads,
        key_heads=key_heads,
        query_heads=query_heads,
        width=value_width,
        states=key_width,
        SCALE=float(scale),
        GIVEN=True,
        SOFTPLUS=False,
        DT_MIN=0.0,
        DT_MAX=0.0,
        KEY_MAJOR=True,
    )
    yield from scan.cases()


def packed_cases(
    build: Builder, chip: Chip, packed: Workspace, groups: int
) -> Iterator[tuple[str, tuple[Case, ...]]]:
    """Label and cases of SsdScan where a token's x, B and C lie side by side in a scratch buffer.

    Args:
        build: makes the launches; its operator has the ports of SsdScan but for these three, and
            its states are ``past_ssm`` and ``present_ssm``.
        chip: what they are for.
        packed: (B, T, H·P + 2·G·N).
        groups: G.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED`` naming the operator and the tensor.
    """
    width, states = build.size("P"), build.size("N")
    heads = build.size("H")
    names = ("dt", "A", "D", "dt_bias", "y")
    scan = _scan(
        build,
        chip,
        tensors={
            **{name: name for name in names},
            **dict.fromkeys("xBC", packed),
            "past": "past_ssm",
            "present": "present_ssm",
            "lengths": "sequence_lengths",
        },
        heads=heads,
        key_heads=groups,
        query_heads=groups,
        width=width,
        states=states,
        PACKED=heads * width + 2 * groups * states,
        **scan_constants(build.call),
    )
    yield from scan.cases()


def scan_constants(call: Call) -> dict[str, float | bool]:
    """What the attributes of SsdScan are in its kernels."""
    return {
        "SCALE": 1.0,
        "GIVEN": False,
        "SOFTPLUS": bool(call.attributes["dt_softplus"]),
        "DT_MIN": float(call.attributes["dt_min"]),
        "DT_MAX": float(call.attributes["dt_max"]),
        "KEY_MAJOR": False,
    }


def _scan(
    build: Builder,
    chip: Chip,
    *,
    tensors: Mapping[str, str | Workspace | None],
    heads: int,
    key_heads: int,
    query_heads: int,
    width: int,
    states: int,
    **constants: float | bool,
) -> _Scan:
    """A checked call; ``tensors`` maps kernel parameters to ports or scratch buffers."""

    def refuse(parameter: str, what: str) -> SsmExportError:
        port = tensors[parameter]
        return SsmExportError(
            errors.KERNEL_UNSUPPORTED,
            f"'{port if isinstance(port, str) else tensors['past']}' {what}",
            where=build.spec.name,
            fix="--lowering native",
        )

    if states > MAX_STATES:
        raise refuse("B", f"has {states} states per head, the kernels take up to {MAX_STATES}")
    if heads % key_heads:
        raise refuse("B", f"has {key_heads} heads or groups, which do not divide {heads} heads")
    if heads % query_heads and query_heads % heads:
        raise refuse("C", f"has {query_heads} heads or groups, which do not fit {heads} heads")
    given = {
        name: build.tensor(port) if isinstance(port, str) else port
        for name, port in tensors.items()
    }
    sizes = {"H": heads, "P": width, "N": states, "KEY_HEADS": key_heads}
    values = tensors["x"]
    return _Scan(
        build,
        chip,
        shared={**given, **sizes, "QUERY_HEADS": query_heads, "PACKED": 0, **constants},
        kind=values.type if isinstance(values, Workspace) else build.operands[str(values)].type,
        state=build.operands[str(tensors["present"])].type,
    )
