"""The table of gates says what the reference sheet says, and nothing in it is looser."""

from __future__ import annotations

import math

import pytest

from ssm_export.verification import gates
from ssm_export.verification.gates import DRIFT, OPERATOR, Gates

PRECISIONS = ("fp32", "fp16", "bf16")


def test_operator_gates_are_those_that_were_decided():
    assert {name: gate.nmse for name, gate in OPERATOR.items()} == {
        "fp32": 1e-10,
        "fp16": 2e-7,
        "bf16": 1e-5,
        "int8": 2e-4,
    }
    assert [OPERATOR[name].continuation for name in PRECISIONS] == [5e-6, 5e-4, 4e-3]
    assert [OPERATOR[name].relative for name in PRECISIONS] == [6e-4, 3e-3, 3e-2]
    assert dict(DRIFT) == {"fp32": 1e-5, "fp16": 2e-3, "int8": 8e-2}
    assert (gates.GREEDY_TOKENS, gates.DRIFT_STEPS) == (256, 4096)
    assert gates.LENGTHS == (1, 2, 63, 64, 65)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_whole_model_adds_one_operator_gate_per_layer_in_squares(precision):
    held = Gates(precision, "fp32", layers=24)
    assert held.nmse(24) == pytest.approx(25 * OPERATOR[precision].nmse)
    assert held.continuation(24) == pytest.approx(5 * OPERATOR[precision].continuation)
    assert held.nmse(1) < held.nmse(2) < held.nmse(24)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("depth", [0, 1, 24, 64])
def test_element_gates_stay_within_the_public_tolerance_of_one_operator(precision, depth):
    relative, absolute = Gates(precision, "fp32", layers=depth).element(depth)
    assert relative == OPERATOR[precision].relative
    assert absolute <= OPERATOR[precision].absolute * math.sqrt(1 + depth)


def test_a_coarser_state_type_sets_the_gate_and_only_then():
    assert Gates("fp32", "fp16", 2).nmse(2) == Gates("fp16", "fp16", 2).nmse(2)
    assert Gates("fp16", "fp32", 2).drift(0) == pytest.approx(math.sqrt(2e-7))
    assert Gates("fp16", "fp16", 2).drift(0) == 2e-3
    assert Gates("fp32", "fp32", 2).drift(0) == pytest.approx(1e-5)
    assert Gates("bf16", "fp16", 2).repetition(0) == 4e-3


def test_an_int8_states_gates_are_those_of_its_format():
    """One rounding up or down by chance has the variance step²/6, step = max/127; a row whose
    largest entry is 4.4 times its RMS then has the operator's mean-square error."""
    gate = OPERATOR["int8"]
    assert gate.nmse == pytest.approx((4.4 / 127) ** 2 / 6, rel=0.02)
    assert gate.relative == pytest.approx(1 / 127, rel=0.02)
    assert gate.continuation == pytest.approx(math.sqrt(2 * gate.nmse), rel=0.02)
    assert Gates("fp16", "int8", 2).nmse(2) == pytest.approx(3 * gate.nmse)
    assert Gates("fp32", "int8", 2).element(0)[1] <= gate.absolute
    assert Gates("fp32", "int8", 2).drift(0) == Gates("bf16", "int8", 2).repetition(0) == 8e-2


def test_a_near_tie_is_what_two_wrong_logits_can_turn():
    held = Gates("fp16", "fp32", 24)
    assert held.near_tie(rms=2.0) == pytest.approx(4 * held.element(24)[1])
