"""What is particular to SsdScan's kernels: pieces of P and N, groups, segments, ranges of fp16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kernel_calls import H100, ORIN, call_of, make_plan, run_plan, to_numpy, to_torch
from one_call import PRECISION, assert_within, nmse

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import Call, OpSpec, Port, all_ops
from ssm_export_plugins.kernels import ssd_scan
from ssm_export_plugins.launch import run
from ssm_export_plugins.plan import Builder, Chip, Plan

SPEC = all_ops()["SsdScan"]
WIDE = Chip((9, 0), 232_448, 132)


def make(seed: int, omit: tuple[str, ...] = (), ragged: bool = False, **sizes: int) -> Any:
    sizes = {"B": 1, "T": 5, "H": 2, "P": 16, "G": 1, "N": 16, **sizes}
    return SPEC.make_inputs(np.random.default_rng(seed), sizes, omit, ragged)


def check(feeds: Any, made: Any, kind: str, **attributes: Any) -> None:
    for name, value in SPEC.reference(feeds, {**SPEC.attributes, **attributes}).items():
        assert_within(made[name], value, SPEC.tolerances[PRECISION[kind]], name)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (1, (16, 0)), (16, (16, 0)), (17, (32, 0)), (64, (64, 0)), (80, (64, 16)),
        (81, (64, 32)), (96, (64, 32)), (112, (128, 0)), (128, (128, 0)), (144, (128, 16)),
    ],
)  # fmt: skip
def test_pieces_cover_a_width_and_pad_little(width: int, expected: tuple[int, int]) -> None:
    assert ssd_scan.pieces(width) == expected
    assert width <= sum(expected)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("chip", [ORIN, H100], ids=["orin", "h100"])
def test_head_width_80_and_96_states(kind: str, chip: Chip) -> None:
    inputs = make(0, ragged=True, B=2, T=70, H=2, P=80, N=96)
    inputs["sequence_lengths"][:] = [70, 37]
    feeds, made = run_plan(SPEC, inputs, {"T": kind, "S": "float32"}, chip=chip, in_place=True)
    check(feeds, made, kind)


@pytest.mark.parametrize(("P", "N"), [(3, 5), (16, 144), (144, 144), (40, 256), (300, 17)])
@pytest.mark.parametrize("length", [1, 3])
def test_other_head_widths_and_states(P: int, N: int, length: int) -> None:
    types = {"T": "float16", "S": "float32"}
    feeds, made = run_plan(SPEC, make(1, T=length, H=1, P=P, N=N), types, step=length == 1)
    check(feeds, made, "float16")


@pytest.mark.parametrize("length", [1, 33])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_heads_take_the_keys_of_their_group(groups: int, length: int) -> None:
    inputs = make(2, T=length, H=6, P=4, G=groups, N=4)
    feeds, made = run_plan(SPEC, inputs, {"T": "float32", "S": "float32"}, step=length == 1)
    check(feeds, made, "float32")


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("omit", [(), ("D", "dt_bias")], ids=["all", "no-D"])
def test_split_along_time_equals_the_whole(kind: str, omit: tuple[str, ...]) -> None:
    """Three segments for two rows, of which one ends in the first; the state is one buffer."""
    inputs = make(3, omit, ragged=True, B=2, T=800, H=1)
    inputs["sequence_lengths"][:] = [800, 130]
    types = {"T": kind, "S": "float32"}
    plan = make_plan(SPEC, call_of(SPEC, inputs, types), WIDE)
    case = plan.case({"B": 2, "T": 800})
    assert len(case.launches) == 2
    assert [axis.value({"B": 2, "T": 800}) for axis in case.launches[1].grid] == [1, 3, 2]
    feeds, made = run_plan(SPEC, inputs, types, chip=WIDE, in_place=True)
    check(feeds, made, kind)


def test_scratch_of_the_largest_sizes_is_enough_for_smaller_ones() -> None:
    """An engine allocates for its profile's largest batch and length, and runs smaller ones."""
    for chip in (WIDE, ORIN, Chip((9, 0), 232_448, 7)):
        for heads in (1, 3, 24):
            sizes = {"H": heads, "P": 64, "G": 1, "N": 128}
            present = frozenset({"x", "dt", "A", "B", "C", "past"})
            plan = make_plan(SPEC, Call(present, SPEC.attributes, sizes), chip)
            lengths, batches = (1, 255, 256, 700, 4096, 100_000), (1, 2, 3, 8, 50)
            for most in [(b, t) for b in batches for t in lengths]:
                limits = {w.name: w.elements.value({"B": most[0], "T": most[1]}) for w in
                          plan.workspaces()}  # fmt: skip
                for b in (b for b in batches if b <= most[0]):
                    for t in (t for t in lengths if t <= most[1]):
                        launches = plan.case({"B": b, "T": t}).launches
                        if len(launches) == 2:
                            _, segments, _ = (a.value({"B": b, "T": t}) for a in launches[1].grid)
                            slots = segments * b * heads
                            assert slots <= limits["totals"] and slots * 8192 <= limits["ends"]


@pytest.mark.parametrize("length", [1, 70])
def test_fp16_scores_and_states_beyond_its_range(length: int) -> None:
    """Inputs of 1e3 make scores and states of 1e6 and more; the outputs are in range."""
    inputs = make(4, ("D",), T=length, N=32)
    inputs["x"] *= 20.0
    inputs["B"] *= 4e4
    inputs["past"] *= 1e6
    inputs["C"] *= 3e-5
    types = {"T": "float16", "S": "float32"}
    feeds, made = run_plan(SPEC, inputs, types, step=length == 1)
    expected = SPEC.reference(feeds, SPEC.attributes)
    assert np.abs(expected["present"]).max() > 1e5
    assert np.abs(expected["y"]).max() < 65504
    for name, value in expected.items():
        assert nmse(made[name], value) <= SPEC.tolerances["fp16"].nmse, name


def test_fp16_scores_of_1e8_meet_tiny_inputs() -> None:
    """C and B of 1e3 give scores of 1e7, which fp16 does not hold, for x of 1e-3."""
    inputs = make(5, ("D",), T=40, N=32)
    inputs["x"] *= 1e-3
    inputs["B"] *= 1e3 * np.sqrt(32)
    inputs["C"] *= 1e3
    inputs["past"] *= 1e-2
    feeds, made = run_plan(SPEC, inputs, {"T": "float16", "S": "float32"})
    scores = np.einsum("btgn,bsgn->bts", *(feeds[n].astype(np.float64) for n in "CB"))
    assert np.abs(scores).max() > 65504
    expected = SPEC.reference(feeds, SPEC.attributes)
    assert np.abs(expected["y"]).max() < 65504
    for name, value in expected.items():
        assert nmse(made[name], value) <= SPEC.tolerances["fp16"].nmse, name


@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("dt", [-60.0, -12.0, 25.0], ids=str)
def test_time_steps_far_from_zero(dt: float, length: int) -> None:
    """The softplus is right to fp32's last digits where it is exp(dt), and where it is dt."""
    inputs = make(6, ("D", "dt_bias"), T=length)
    inputs["dt"] = np.full_like(inputs["dt"], dt)
    inputs["past"] *= 0.0
    feeds, made = run_plan(SPEC, inputs, {"T": "float32", "S": "float32"}, step=length == 1)
    for name, value in SPEC.reference(feeds, SPEC.attributes).items():
        assert nmse(made[name], value) <= 1e-10, name
        assert np.abs(value).max() > 0.0


def test_strong_decays_cost_the_tokens_after_them_no_digits() -> None:
    """A long sum of log decays would round away the small ones between two resets."""
    inputs = make(11, ("D", "dt_bias"), T=100)
    inputs["dt"][:, ::3] = 1e3
    inputs["x"][:, ::3] /= 1e3
    feeds, made = run_plan(SPEC, inputs, {"T": "float32", "S": "float32"})
    for name, value in SPEC.reference(feeds, SPEC.attributes).items():
        assert nmse(made[name], value) <= 1e-12, name


def test_a_decay_to_nothing_resets_the_state() -> None:
    inputs = make(7, ("D", "dt_bias"), T=20)
    inputs["dt"][:, 7] = 1e4
    inputs["A"][:] = -1e30
    feeds, made = run_plan(SPEC, inputs, {"T": "float32", "S": "float32"})
    check(feeds, made, "float32")


@pytest.mark.parametrize(
    "attributes",
    [{"dt_min": 0.01, "dt_max": 0.1}, {"dt_softplus": 0}, {"dt_softplus": 0, "dt_min": -1.0}],
    ids=str,
)
@pytest.mark.parametrize("length", [1, 33])
def test_clamps(attributes: dict[str, Any], length: int) -> None:
    """A lower clamp below zero lets negative time steps through, which only grow the state."""
    inputs = make(8, T=length)
    inputs["A"] *= 0.1
    inputs["dt"] *= 0.05
    types = {"T": "bfloat16", "S": "float32"}
    feeds, made = run_plan(SPEC, inputs, types, step=length == 1, **attributes)
    check(feeds, made, "bfloat16", **attributes)


def test_too_many_states_are_refused() -> None:
    sizes = {"H": 2, "P": 16, "G": 1, "N": 257}
    present = frozenset({"x", "dt", "A", "B", "C", "past"})
    with pytest.raises(SsmExportError) as caught:
        make_plan(SPEC, Call(present, SPEC.attributes, sizes))
    assert caught.value.code == errors.KERNEL_UNSUPPORTED
    assert "SsdScan" in str(caught.value) and "'B'" in str(caught.value)


def attention(
    rng: np.random.Generator, sizes: dict[str, int], kind: str, gated: bool, scale: float
) -> tuple[Plan, dict[str, np.ndarray]]:
    """A plan of linear attention and its inputs; the ports are this test's own."""
    b, t, h, hq, hk, k, v = (sizes[name] for name in ("B", "T", "H", "HQ", "HK", "K", "V"))
    ports = [Port("q", "BTX"), Port("k", "BTY"), Port("v", "BTZ"), Port("g", "BTH"),
             Port("past", "BHKV", "S")]  # fmt: skip
    inputs = {
        "q": rng.standard_normal((b, t, hq * k)),
        "k": rng.standard_normal((b, t, hk * k)) / np.sqrt(k),
        "v": rng.standard_normal((b, t, h * v)),
        "g": -np.exp(rng.uniform(-6, 1, (b, t, h))),
        "past": rng.standard_normal((b, h, k, v)),
    }
    if not gated:
        del inputs["g"]
        ports = [port for port in ports if port.name != "g"]
    spec = OpSpec(
        name="Attention",
        doc="",
        inputs=tuple(ports),
        outputs=(Port("out", "BTO"), Port("present", "BHKV", "S")),
        attributes={},
        reference=lambda *_: {},
        make_inputs=lambda *_: {},
        bodies={},
        tolerances={},
        sizes={},
    )
    letters = {"X": hq * k, "Y": hk * k, "Z": h * v, "H": h, "V": v, "O": max(h, hq) * v}
    # K would mean taps to the builder, whose states here are of K keys.
    call = Call(frozenset(inputs), {}, {**letters, "K": k}, {"T": kind, "S": "float32"})
    build = Builder(spec, call)
    label, cases = next(
        ssd_scan.linear_attention_cases(
            build, H100, query="q", key="k", value="v", decay="g" if gated else None, past="past",
            output="out", present="present", heads=h, query_heads=hq, key_heads=hk, key_width=k,
            value_width=v, scale=scale,
        )
    )  # fmt: skip
    return build.plan(*cases, label=label), inputs


@pytest.mark.parametrize("length", [1, 70])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "linear"])
@pytest.mark.parametrize(("queries", "keys"), [(4, 2), (2, 2), (1, 1), (2, 1)])
def test_linear_attention(queries: int, keys: int, gated: bool, length: int) -> None:
    """Against a token loop in float64: q, k and v packed, state (B,H,K,V), heads grouped."""
    sizes = {"B": 2, "T": length, "H": 2, "HQ": queries, "HK": keys, "K": 8, "V": 12}
    plan, inputs = attention(np.random.default_rng(9), sizes, "float32", gated, 0.25)
    if gated and length > 3:
        inputs["g"][:, 3] = -np.inf
    feeds = {name: value.astype(np.float32) for name, value in inputs.items()}
    tensors = {name: to_torch(value) for name, value in feeds.items()}
    outputs = {
        "out": torch.full(
            (2, length, max(2, queries) * 12), float("nan"), device=tensors["q"].device
        ),
        "present": tensors["past"],
    }
    made = run(plan, tensors, outputs)
    q = feeds["q"].astype(np.float64).reshape(2, length, queries, 8)
    k = feeds["k"].astype(np.float64).reshape(2, length, keys, 8).repeat(2 // keys, axis=2)
    v = feeds["v"].astype(np.float64).reshape(2, length, 2, 12)
    g = feeds["g"].astype(np.float64) if gated else np.zeros((2, length, 2))
    every = max(2, queries)
    q = q.repeat(every // queries, axis=2)
    state, out = feeds["past"].astype(np.float64), np.zeros((2, length, every, 12))
    for t in range(length):
        state = np.exp(g[:, t])[..., None, None] * state
        state = state + k[:, t][..., None] * v[:, t][:, :, None, :]
        shared = state.repeat(every // 2, axis=1)
        out[:, t] = 0.25 * np.einsum("bhk,bhkv->bhv", q[:, t], shared)
    tolerance = SPEC.tolerances["fp32"]
    assert_within(to_numpy(made["out"]), out.reshape(2, length, -1), tolerance, "out")
    assert_within(to_numpy(made["present"]), state, tolerance, "present")


def test_linear_attention_refuses_heads_that_do_not_fit() -> None:
    sizes = {"B": 1, "T": 2, "H": 3, "HQ": 2, "HK": 3, "K": 4, "V": 4}
    with pytest.raises(SsmExportError) as caught:
        attention(np.random.default_rng(0), sizes, "float32", True, 1.0)
    assert caught.value.code == errors.KERNEL_UNSUPPORTED and "'q'" in str(caught.value)
