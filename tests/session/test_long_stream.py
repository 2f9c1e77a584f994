"""A stream that goes on and on: memory stays where it is, and so does the state's error.

A million tokens of a trained model are decoded by ``tests/benchmarks/bench_drift.py --stream
1000000``.
"""

from __future__ import annotations

import pytest
from long_stream import SAMPLES, decode
from toy_bundle import L

from ssm_export.verification.gates import Gates

TOKENS = 40_000
MOST_GROWTH = 2_000_000
"""Bytes: less than one float32 a token of the latter half would be times the model's width."""


@pytest.mark.slow
def test_a_long_stream_takes_constant_memory_and_does_not_drift(session_of, truth):
    stream = decode(session_of(), truth, TOKENS)
    assert len(stream.resident) == SAMPLES
    assert max(stream.resident[SAMPLES // 4 :]) - stream.resident[SAMPLES // 4] < MOST_GROWTH
    assert stream.worst < Gates("fp32", "fp32", L).drift(L)
