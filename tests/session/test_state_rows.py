"""Rows of a state: forks and selections are views, and are copied when they are taken."""

from __future__ import annotations

import numpy as np
import pytest

from ssm_export.state import Owner, State

SHAPES = {"a": ((3, 5), "f4"), "b": ((7,), "i1"), "c": ((2, 3), "f2"), "d": ((1, 1), "f4")}


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    stored = {
        name: rng.integers(-100, 100, (3, *shape)).astype(kind)
        for name, (shape, kind) in SHAPES.items()
    }
    return State(Owner("toy", "", "", ""), stored, None, np.arange(3), (0, 1, 2))


@pytest.mark.parametrize("picks", [[0, 0, 0, 0], [2, 1, 0], [1, 2], [2], [0, 2, 2, 1, 0]])
def test_the_arrays_are_those_of_the_rows(state, picks):
    for name, array in state.select(picks).arrays().items():
        want = np.stack([state.stored[name][pick] for pick in picks])
        assert (array.dtype, array.tobytes()) == (want.dtype, want.tobytes())
        assert array.flags.c_contiguous and array.flags.aligned and not array.flags.writeable


def test_a_fork_is_a_view_and_is_copied_into_one_block_when_it_is_taken(state):
    forked = state.select([1]).fork(4)
    assert all(forked.stored[name] is array for name, array in state.stored.items())
    taken = forked.arrays()
    assert not any(np.shares_memory(taken[name], state.stored[name]) for name in taken)
    # One block is what the system gives in huge pages; see the benchmark of sessions.
    blocks = [array.base for array in taken.values()]
    assert blocks[0] is not None and all(block is blocks[0] for block in blocks)
    kept = state.select([1, 2]).arrays()
    assert all(np.shares_memory(kept[name], state.stored[name]) for name in kept)


def test_rows_that_are_replaced_are_copies(state):
    other = state.select([2])
    made = state.select([0, 0]).replaced({1: other})
    for name, array in made.arrays().items():
        want = state.stored[name][[0, 2]]
        assert array.tobytes() == want.tobytes()
        assert not np.shares_memory(array, state.stored[name])
    assert made.tokens_read().tolist() == [0, 2]
