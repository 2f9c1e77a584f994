"""LinearAttention on a GPU: which kernels compute which of its update rules.

One token, a few, and decays per key channel go token by token, with columns of the state in
registers. Longer prompts go in chunks of matrix products: ``linear`` and ``gated`` through the
kernels of SsdScan, whose recurrence they are, the delta rules through the triangular system of a
chunk (:mod:`ssm_export_plugins.kernels._linear_attention`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec
from ssm_export_plugins.expressions import cdiv, symbol
from ssm_export_plugins.kernels import _linear_attention as kernels
from ssm_export_plugins.kernels.ssd_scan import MAX_STATES, linear_attention_cases
from ssm_export_plugins.plan import ALWAYS, Builder, Case, Chip, Launch, Plan, Workspace

MAX_WIDTH = 4096
"""Key widths above this leave no room for a column of the state in a block's registers."""

SHORT = 16
"""Prompts below this go token by token."""

CELLS_PER_THREAD = 32
"""State cells that a thread keeps in registers when going token by token."""


def plans(spec: OpSpec, call: Call, chip: Chip) -> Iterator[Plan]:
    """Plans of one call; see :func:`ssm_export_plugins.kernels.plans`."""
    build = Builder(spec, call)
    if build.size("K") > MAX_WIDTH:
        raise SsmExportError(
            errors.KERNEL_UNSUPPORTED,
            f"'key' has {build.size('K')} channels per head, the kernels take up to {MAX_WIDTH}",
            where=spec.name,
        )
    T = build.size("T")
    step = _scan(build, widest=32, one_token=True)
    if T == 1:
        yield build.plan(Case(ALWAYS, (step,)))
        return
    short = _scan(build, widest=8, one_token=False)
    first = (Case(T.equals(1), (step,)), Case(T < SHORT, (short,)))
    if call.sizes.get("g", 0) in (0, build.size("H")):
        if "beta" in call.present:
            for label, launches in _delta(build, chip):
                yield build.plan(*first, Case(ALWAYS, launches), label=label)
        elif build.size("K") <= MAX_STATES:
            for label, cases in _products(build, chip):
                yield build.plan(*first, *cases, label=label)
    yield build.plan(first[0], Case(ALWAYS, (short,)), label="tokens")


def _shared(build: Builder) -> dict[str, Any]:
    """The arguments that kernels have in common."""
    attributes, width, heads = build.call.attributes, build.size("K"), build.size("H")
    return {
        **{name: build.tensor(name) for name in ("query", "key", "value", "decay", "output")},
        "past": build.tensor("past_state"),
        "present": build.tensor("present_state"),
        "H": heads,
        "GROUP": int(attributes["q_num_heads"]) // heads,
        "K": width,
        "V": build.size("V"),
        "SCALE": float(attributes["scale"]) or width**-0.5,
        "GATES": build.call.sizes.get("g", 0),
    }


def _scan(build: Builder, widest: int, one_token: bool) -> Launch:
    """Token by token; up to ``widest`` columns of the state in a block."""
    shared = _shared(build)
    rows, columns, warps = _power(shared["K"]), min(widest, _power(shared["V"])), 1
    while warps < 8 and rows * columns > 32 * warps * CELLS_PER_THREAD:
        warps *= 2
    while columns > 1 and rows * columns > 32 * warps * CELLS_PER_THREAD:
        columns //= 2
    return build.launch(
        kernels.linear_attention_scan,
        (cdiv(shared["V"], columns), shared["H"], symbol("B")),
        num_warps=warps,
        beta=build.tensor("beta"),
        T=1 if one_token else build.size("T"),
        BETAS=build.call.sizes.get("b", 0),
        BLOCK_K=rows,
        BLOCK_V=columns,
        **shared,
    )


def _products(build: Builder, chip: Chip) -> Iterator[tuple[str, tuple[Case, ...]]]:
    """The rules without beta, in chunks."""
    shared = _shared(build)
    return linear_attention_cases(
        build,
        chip,
        query="query",
        key="key",
        value="value",
        decay=shared["decay"] and "decay",
        past=shared["past"] and "past_state",
        output="output",
        present="present_state",
        heads=shared["H"],
        query_heads=shared["H"] * shared["GROUP"],
        key_heads=shared["H"],
        key_width=shared["K"],
        value_width=shared["V"],
        scale=shared["SCALE"],
    )


def _delta(build: Builder, chip: Chip) -> Iterator[tuple[str, tuple[Launch, ...]]]:
    """The rules with beta, in chunks: what fits the registers, best first.

    Fewer columns of the state to a block where the heads alone do not give every multiprocessor
    one.
    """
    fills = build.size("H") * -(-build.size("V") // 64) >= chip.multiprocessors
    columns = 64 if fills else 32
    long = build.call.type("T") == "bfloat16" and "decay" not in build.call.present
    for chunk, width in (*(((64, columns),) if long else ()), (32, columns)):
        yield f"chunks {chunk}x{width}", _chunked(build, chunk, width)


def _chunked(build: Builder, chunk: int, columns: int) -> tuple[Launch, ...]:
    """The triangular systems of all chunks, then the walk through the chunks of every head."""
    shared = _shared(build)
    heads, B, T = shared["H"], symbol("B"), build.size("T")
    columns = min(columns, max(16, _power(shared["V"])))
    piece = 16 if build.call.type("T") == "float32" or chunk > 32 else 32
    solved = Workspace("solved", "float32", B * heads * cdiv(T, chunk) * (chunk * chunk))
    carried = None
    if build.call.type("S") != "float32":
        carried = Workspace("carried", "float32", B * (heads * shared["K"] * shared["V"]))
    solve = build.launch(
        kernels.linear_attention_solve,
        (cdiv(T, chunk), heads, B),
        num_warps=chunk // 16,
        beta=build.tensor("beta"),
        solved=solved,
        T=T,
        BETAS=build.call.sizes["b"],
        CHUNK=chunk,
        PIECE=piece,
        **{name: shared[name] for name in ("key", "decay", "H", "K", "GATES")},
    )
    walk = build.launch(
        kernels.linear_attention_chunks,
        (cdiv(shared["V"], columns), heads, B),
        num_warps=4,
        solved=solved,
        carried=carried,
        T=T,
        CHUNK=chunk,
        PIECE=piece,
        BLOCK_V=columns,
        PRECISION="tf32" if build.call.type("T") == "bfloat16" else "tf32x3",
        **shared,
    )
    return solve, walk


def _power(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()
