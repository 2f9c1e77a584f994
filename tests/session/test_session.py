"""A session against the toy model in float64: splits, rows, forks, ends, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from long_stream import relative
from toy_bundle import L, PlainRunner, Truth, V

from ssm_export import Session, State, errors
from ssm_export.engines import open_runner
from ssm_export.engines._ort_device import DeviceRunner
from ssm_export.errors import SsmExportError
from ssm_export.sampling import Chooser, Sampler
from ssm_export.verification.gates import Gates

GATES = Gates("fp32", "fp32", L)
SHARED = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def ids_of(rows: int, tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (rows, tokens))


def close(session: Session, ids: np.ndarray, truth: Truth, row: int | None = None) -> None:
    """The session is where the truth is after ``ids``."""
    want_logits, want = truth.forward(ids)
    state = session.state if row is None else session.state.select([row])
    got = state.arrays()
    for name, value in want.items():
        assert relative(got[name], value) < GATES.repetition(L), name
    logits = state.last_logits()
    assert relative(logits, want_logits[:, -1]) < GATES.repetition(L)
    assert state.tokens_read().tolist() == [ids.shape[1]] * len(ids)


@SHARED
@given(
    rows=st.sampled_from([1, 3]),
    pieces=st.lists(st.one_of(st.just(0), st.integers(1, 66)), min_size=1, max_size=6),
    every=st.booleans(),
    resident=st.booleans(),
)
def test_any_split_into_prefills_and_steps_is_one_prefill(
    toy, runners, truth, rows, pieces, every, resident
):
    """0 stands for a step. With buffers bound on the device too, the CPU as the device."""
    bundle = toy(every=every)
    runner = (
        DeviceRunner(bundle, "onnxruntime", threads=1, device="cpu")
        if resident
        else runners(every=every)
    )
    session = Session(bundle, runner=runner)
    ids = ids_of(rows, sum(piece or 1 for piece in pieces), seed=len(pieces))
    start = 0
    for piece in pieces:
        fed = ids[:, start : start + (piece or 1)]
        logits = session.prefill(fed) if piece else session.step(fed)
        assert logits.shape == (rows, fed.shape[1] if every else 1, V)
        start += fed.shape[1]
    close(session, ids, truth)
    whole = Session(bundle, runner=runners(every=every))
    whole.prefill(ids)
    one, other = whole.state.arrays(), session.state.arrays()
    assert all(relative(other[name], one[name]) < GATES.repetition(L) for name in one)


def test_a_prompt_longer_than_the_engine_takes_is_fed_in_pieces(toy, truth):
    session = Session(toy(), runner=PlainRunner(toy(), max_chunk=7))
    session.prefill(ids_of(2, 30))
    close(session, ids_of(2, 30), truth)


@pytest.mark.parametrize("every", [False, True])
def test_rows_of_several_lengths_are_as_if_alone(session_of, truth, every):
    session = session_of(ragged=True, every=every)
    prompts = [ids_of(1, count, seed=count)[0] for count in (5, 1, 64)]
    session.prefill([list(prompt) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        close(session, prompt[None], truth, row)
    # A row that is given nothing stays where it is.
    more = ids_of(3, 4, seed=9)
    session.prefill(more, lengths=[4, 0, 2])
    for row, count in enumerate((4, 0, 2)):
        close(session, np.concatenate([prompts[row], more[row, :count]])[None], truth, row)


def test_batched_greedy_tokens_are_those_of_the_truth(session_of, truth):
    prompts = [[5, 6, 7], [8], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    made = session_of(ragged=True).generate(prompts, max_tokens=12, ends=frozenset())
    for prompt, tokens in zip(prompts, made, strict=True):
        want, _ = truth.generate(np.array([prompt]), 12)
        assert tokens == tuple(want[0])


def test_a_row_that_ends_keeps_its_state_while_others_go_on(session_of, truth):
    prompts = np.array([[5, 6, 7], [9, 3, 30]])
    want, _ = truth.generate(prompts, 12)
    end = next(int(t) for t in want[0][2:] if t not in want[1])
    first = list(want[0]).index(end)
    session, seen = session_of(), []
    made = session.generate(prompts, max_tokens=12, ends=frozenset({end}), stream=seen.append)
    assert made == (tuple(want[0, :first]), tuple(want[1]))
    assert [tokens[0] for tokens in seen][first:] == [None] * (12 - first)
    for row in (0, 1):
        close(session, np.concatenate([prompts[row], made[row]])[None], truth, row)
    # All of it goes on from there.
    session.step([[1], [2]])
    close(session, np.concatenate([prompts[0], made[0], [1]])[None], truth, 0)
    close(session, np.concatenate([prompts[1], made[1], [2]])[None], truth, 1)


@pytest.mark.parametrize("often", [1, 3])
def test_reading_the_state_between_tokens_revives_no_row(session_of, often):
    """Drawn anew from the same logits, a row that had ended would go on."""
    prompts = ids_of(4, 5)
    options = {"max_tokens": 20, "temperature": 2.0, "seed": 3, "ends": frozenset(range(6))}
    session = session_of()
    want = session.generate(prompts, **options)
    assert len({len(tokens) for tokens in want}) > 1
    after = session.state
    session.reset()
    seen = []

    def read(tokens):
        seen.append(tokens)
        if len(seen) % often == 0:
            assert session.state.rows == 4

    assert session.generate(prompts, **options, stream=read) == want
    assert session.state.tokens_read().tolist() == [5 + len(tokens) for tokens in want]
    for name, array in session.state.arrays().items():
        assert relative(array, after.arrays()[name]) < GATES.repetition(L)


@pytest.mark.parametrize("often", [1, 3])
def test_a_row_that_ended_is_where_it_was_whenever_it_is_looked_at(session_of, truth, often):
    prompts = np.array([[5, 6, 7], [9, 3, 30]])
    want, _ = truth.generate(prompts, 12)
    end = next(int(t) for t in want[0][2:] if t not in want[1])
    first = list(want[0]).index(end)
    session, seen = session_of(), []

    def read(tokens):
        seen.append(tokens)
        if len(seen) % often == 0:
            state = session.state
            assert session.logits.tobytes() == state.last_logits().tobytes()
            assert state.tokens_read().tolist() == [3 + min(len(seen), first), 3 + len(seen)]

    made = session.generate(prompts, max_tokens=12, ends=frozenset({end}), stream=read)
    assert made == (tuple(want[0, :first]), tuple(want[1]))
    assert [tokens[0] for tokens in seen][first:] == [None] * (12 - first)
    for row in (0, 1):
        close(session, np.concatenate([prompts[row], made[row]])[None], truth, row)


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda s, state: s.restore(state),
        lambda s, state: s.restore(state.fork(3)),
        lambda s, state: s.reset(),
        lambda s, state: s.reset(2),
        lambda s, state: s.prefill([[1, 2]]),
        lambda s, state: s.step([[1]]),
        lambda s, state: next(s.choose(3)),
        lambda s, state: s.generate(max_tokens=1),
    ],
)
def test_tokens_are_not_chosen_on_after_something_else(session_of, meanwhile):
    session = session_of()
    session.prefill([[5, 6, 7]])
    state, tokens = session.state, session.choose(5)
    next(tokens)
    meanwhile(session, state)
    with pytest.raises(SsmExportError, match=r"call session\.choose again") as caught:
        next(tokens)
    assert caught.value.code is errors.BAD_OPTION


def test_tokens_are_chosen_on_after_what_changes_nothing(session_of, truth):
    session = session_of()
    session.prefill([[5, 6, 7]])
    want, _ = truth.generate(np.array([[5, 6, 7]]), 4)
    tokens, made = session.choose(4), []
    for (token,) in tokens:
        made.append(token)
        for wrong in (lambda: session.step([[V]]), lambda: session.restore("x")):
            with pytest.raises(SsmExportError):
                wrong()
    assert made == list(want[0])
    last = session.choose(1)
    next(last)
    session.reset()
    assert list(last) == []  # it was over
    session.prefill([[5]])
    tokens = session.choose(2)
    next(tokens)
    session.close()
    with pytest.raises(SsmExportError, match="the session is closed"):
        next(tokens)


def test_leaving_the_tokens_early_leaves_the_session_where_they_end(session_of, truth):
    session = session_of()
    session.prefill([[5, 6, 7]])
    taken = []
    for (token,) in session.choose(20):
        taken.append(token)
        if len(taken) == 4:
            break
    close(session, np.array([[5, 6, 7, *taken]]), truth)


def test_forks_are_independent_and_a_state_does_not_change(session_of, truth):
    session = session_of()
    session.prefill([[5, 6, 7]])
    kept = session.state
    before = {name: array.copy() for name, array in kept.arrays().items()}
    session.restore(kept.fork(3))
    session.step([[1], [2], [3]])
    for row in range(3):
        close(session, np.array([[5, 6, 7, row + 1]]), truth, row)
    swapped = session.state.select([2, 0])
    session.restore(swapped)
    close(session, np.array([[5, 6, 7, 3]]), truth, 0)
    close(session, np.array([[5, 6, 7, 1]]), truth, 1)
    for name, array in kept.arrays().items():
        np.testing.assert_array_equal(array, before[name])
        assert not array.flags.writeable


def test_forks_draw_different_tokens_and_a_seed_repeats_them(session_of):
    session = session_of()
    session.prefill([[5, 6, 7]])
    forked = session.state.fork(4)
    runs = []
    for _ in range(2):
        session.restore(forked)
        runs.append(session.generate(max_tokens=16, temperature=3.0, seed=1))
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 4


def test_sampling_goes_on_after_saving_as_if_it_had_not_stopped(session_of, toy, tmp_path):
    """With rows of several lengths, and one that is cut off at another token than the rest."""
    options = {"temperature": 2.0, "seed": 5, "ends": frozenset()}
    session = session_of(ragged=True)
    session.prefill([[5, 6, 7], [8], [1, 2, 3, 4, 5]])
    begun = session.state
    whole = session.generate(max_tokens=24, **options)
    for count in (1, 12, 23):
        session.restore(begun)
        first = session.generate(max_tokens=count, **options)
        session.state.save(tmp_path / "a.state")
        other = session_of(ragged=True)
        other.restore(State.load(tmp_path / "a.state", toy(ragged=True)))
        rest = other.generate(max_tokens=24 - count, **options)
        assert tuple(a + b for a, b in zip(first, rest, strict=True)) == whole


def test_every_turn_of_a_chat_draws_other_numbers(session_of):
    """The model is left out: its logits are equal after every token."""
    session = session_of()
    session.prefill([[5]])
    turns = []
    for _ in range(3):
        flat = Chooser(Sampler(1.0, seed=5), frozenset(), session.state.tokens_read())
        turns.append([flat(np.zeros((1, V))) for _ in range(16)])
        session.prefill([[1] * 16])
    assert len({str(turn) for turn in turns}) == 3


def test_a_step_before_any_prefill_goes_on_from_the_initial_state(session_of, truth):
    session = session_of()
    session.step([[4], [5]])
    close(session, np.array([[4], [5]]), truth)
    session.reset()
    session.prefill([[6]])
    close(session, np.array([[6]]), truth)


def test_what_the_caller_does_to_logits_does_not_reach_the_session(session_of, truth):
    session = session_of()
    session.prefill([[5, 6, 7]])[...] = 0
    session.step([[8]])[...] = 0
    close(session, np.array([[5, 6, 7, 8]]), truth)


def test_warming_up_leaves_nothing_behind(session_of, truth):
    session = session_of()
    session.warm_up()
    assert session.rows == 0
    session.prefill([[5, 6, 7]])
    close(session, np.array([[5, 6, 7]]), truth)


def test_the_runner_that_was_given_stays_open_and_one_s_own_is_closed(toy):
    runner = open_runner(toy())
    with Session(toy(), runner=runner) as session:
        session.step([[1]])
        assert (session.info.name, session.cuda_graph) == ("onnxruntime", None)
    Session(toy(), runner=runner).step([[1]])
    with pytest.raises(SsmExportError, match="the session is closed") as caught:
        session.step([[1]])
    assert caught.value.code is errors.BAD_OPTION
    with Session(toy().path) as own:
        own.step([[1]])
        state = own.state
    assert state.rows == 1


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        (lambda s: s.prefill([]), errors.EMPTY_PROMPT, "no token"),
        (lambda s: s.prefill([[]]), errors.EMPTY_PROMPT, "prompt 0 has no tokens"),
        (lambda s: s.prefill(np.zeros((2, 0), int)), errors.EMPTY_PROMPT, "no token"),
        (lambda s: s.prefill([[V]]), errors.BAD_OPTION, f"token {V} is not of this model"),
        (lambda s: s.step([[-1]]), errors.BAD_OPTION, "token -1"),
        (lambda s: s.step([[1.5]]), errors.BAD_OPTION, "float64"),
        (lambda s: s.step([1]), errors.BAD_OPTION, r"shape \(1,\)"),
        (lambda s: s.step([[1, 2]]), errors.BAD_OPTION, "2 tokens a row"),
        (lambda s: s.prefill([[1], [2, 3]]), errors.BAD_OPTION, "--ragged"),
        (lambda s: s.prefill([[1, 2]], lengths=[1]), errors.BAD_OPTION, "--ragged"),
        (lambda s: (s.prefill([[1]]), s.step([[1], [2]])), errors.BAD_OPTION, "2 rows .* has 1"),
        (lambda s: s.generate(max_tokens=3), errors.EMPTY_PROMPT, "read nothing"),
        (lambda s: s.generate([[1]], max_tokens=0), errors.BAD_OPTION, "max_tokens is 0"),
        (lambda s: s.generate([[1]], temperature=-1.0), errors.BAD_OPTION, "temperature"),
        (lambda s: s.generate([[1]], seed=-1), errors.BAD_OPTION, "seed is -1"),
        (lambda s: s.restore("x"), errors.BAD_OPTION, r"State\.load\(file, bundle\) reads one"),
        (lambda s: s.state, errors.BAD_OPTION, "no rows yet"),
        (lambda s: s.reset(0), errors.BAD_OPTION, "batch of 0"),
        (lambda s: (s.prefill([[1], [2]]), s.state.fork(2)), errors.BAD_OPTION, "of 2 rows"),
        (lambda s: (s.prefill([[1]]), s.state.fork(0)), errors.BAD_OPTION, "into 0"),
        (lambda s: (s.prefill([[1]]), s.state.select([1])), errors.BAD_OPTION, "rows 0 to 0"),
        (lambda s: (s.prefill([[1]]), s.state.select([])), errors.BAD_OPTION, "rows 0 to 0"),
    ],
)
def test_what_cannot_be_done_is_said(session_of, call, code, said):
    with pytest.raises(SsmExportError, match=said) as caught:
        call(session_of())
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("lengths", "code", "said"),
    [
        ([3, 1], errors.BAD_OPTION, "not all between 0 and 2"),
        ([-1, 1], errors.BAD_OPTION, "not all between 0 and 2"),
        ([1], errors.BAD_OPTION, "one whole number for each row"),
        ([1.0, 2.0], errors.BAD_OPTION, "float64"),
        ([0, 2], errors.EMPTY_PROMPT, "row 0 has no tokens yet"),
    ],
)
def test_lengths_that_are_not_those_of_the_rows(session_of, lengths, code, said):
    with pytest.raises(SsmExportError, match=said) as caught:
        session_of(ragged=True).prefill([[1, 2], [3, 4]], lengths=lengths)
    assert caught.value.code is code


def test_a_refused_call_leaves_the_session_where_it_was(session_of, truth):
    session = session_of()
    session.prefill([[5, 6, 7]])
    for wrong in ([[V]], [[1], [2]], [[]]):
        with pytest.raises(SsmExportError):
            session.prefill(wrong)
    close(session, np.array([[5, 6, 7]]), truth)
