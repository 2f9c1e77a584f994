"""Kernels that no operator has, to see what the compiler refuses: ``odd_kernels.py CASE``.

Run in a process of its own, because kernels are interpreted in that of the tests. Writes the
compiler's answer as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import triton
import triton.language as tl

from ssm_export.ops import Call, OpSpec
from ssm_export.resources import load_plugins

load_plugins()
from ssm_export_plugins import aot_cache, aot_worker, kernels  # noqa: E402  # after load_plugins
from ssm_export_plugins.plan import ALWAYS, Builder, Case, Chip, Plan  # noqa: E402


@triton.jit
def row_sum(x, y, BLOCK: tl.constexpr):
    """Every element over the sum of all, which warps exchange through shared memory."""
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.store(y + at, value / tl.sum(value))


@triton.jit
def broken(x, y, BLOCK: tl.constexpr):
    """Does not compile: the shapes differ."""
    tl.store(y + tl.arange(0, BLOCK), tl.load(x + tl.arange(0, 2 * BLOCK)))


WIDE = {"num_warps": 8, "BLOCK": 1024}
NARROW = {"num_warps": 1, "BLOCK": 512}
SPILLING = {"num_warps": 1, "BLOCK": 8192}
MORE_SPILLING = {"num_warps": 1, "BLOCK": 16384}
CASES = {
    "shared memory": (16, [(row_sum, WIDE), (row_sum, NARROW)]),
    "shared memory of none": (16, [(row_sum, WIDE)]),
    "spills": (100_000, [(row_sum, SPILLING), (row_sum, NARROW)]),
    "spills always": (100_000, [(row_sum, MORE_SPILLING), (row_sum, SPILLING)]),
    "broken": (100_000, [(broken, NARROW), (row_sum, NARROW)]),
}


def main(case: str) -> None:
    shared, choices = CASES[case]

    def plans(spec: OpSpec, call: Call, chip: Chip) -> Iterator[Plan]:
        build = Builder(spec, call)
        for function, options in choices:
            tensors = {name: build.tensor(name) for name in "xy"}
            launch = build.launch(function, (1,), **tensors, **options)
            yield build.plan(Case(ALWAYS, (launch,)), label=str(options["BLOCK"]))

    kernels.plans = plans
    call = Call(frozenset({"x", "weight", "past"}), {"activation": "none"}, {"D": 8, "K": 2})
    request = aot_cache.request("CausalConv1d", call, Chip((8, 7), shared, 8), False)
    print(json.dumps(aot_worker.answer(request)))


if __name__ == "__main__":
    main(sys.argv[1])
