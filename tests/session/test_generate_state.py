"""``generate --save-state`` and ``--load-state``: a prompt is read once, a chat goes on."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from toy_bundle import PlainRunner, V

from ssm_export import State, errors
from ssm_export.errors import SsmExportError
from ssm_export.generation import generate


class Counting(PlainRunner):
    """Counts the tokens that each form is fed."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.fed = {"step": 0, "prefill": 0}

    def run(self, form, feeds):
        self.fed[form] += feeds["input_ids"].size
        return super().run(form, feeds)


def test_a_prompt_read_once_is_never_read_again(toy, truth, tmp_path):
    bundle, file = toy(), tmp_path / "system.state"
    system, question = [5, 6, 7, 8], [9, 10]
    first = generate(bundle, system, runner=PlainRunner(bundle), max_tokens=0, save_state=file)
    assert (first.tokens, first.text, first.finish) == ((), "", "length")
    assert State.load(file, bundle).tokens_read().tolist() == [4]
    runner = Counting(bundle)
    went = generate(bundle, question, runner=runner, max_tokens=6, load_state=file)
    want, _ = truth.generate(np.array([system + question]), 6)
    assert went.tokens == tuple(want[0])
    assert (went.earlier_tokens, went.prompt_tokens) == (4, tuple(question))
    assert runner.fed == {"prefill": 2 + 1, "step": 5 + 1}  # each form is loaded with one token
    runner = Counting(bundle)
    at_once = generate(bundle, runner=runner, max_tokens=1, load_state=file)
    want, _ = truth.generate(np.array([system]), 1)
    assert at_once.tokens == tuple(want[0])
    assert runner.fed == {"prefill": 1, "step": 1}


def test_a_chat_goes_on_in_one_file(toy, truth, tmp_path):
    bundle, file = toy(), tmp_path / "chat.state"
    read: list[int] = []
    for turn, asked in enumerate(([5, 6], [7], [8, 9, 10])):
        load = file if turn else None
        told = generate(
            bundle,
            asked,
            runner=PlainRunner(bundle),
            max_tokens=3,
            load_state=load,
            save_state=file,
        )
        want, _ = truth.generate(np.array([read + asked]), 3)
        assert told.tokens == tuple(want[0])
        read += [*asked, *told.tokens]
    assert State.load(file, bundle).tokens_read().tolist() == [len(read)]


def test_a_sampled_text_is_the_same_with_a_stop_half_way(toy, tmp_path):
    bundle, file = toy(), tmp_path / "half.state"
    options = {"temperature": 2.0, "seed": 5}

    def run(prompt=(), **more):
        return generate(bundle, prompt, runner=PlainRunner(bundle), **options, **more).tokens

    whole = run([5, 6, 7], max_tokens=24)
    half = run([5, 6, 7], max_tokens=12, save_state=file)
    assert half + run(max_tokens=12, load_state=file) == whole


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"max_tokens": 0}, errors.BAD_OPTION),
        ({"max_tokens": -1, "save_state": "a.state"}, errors.BAD_OPTION),
        ({"save_state": "none/a.state"}, errors.NO_SUCH_PATH),
        ({"save_state": "notes.txt"}, errors.OUTPUT_EXISTS),
        ({"load_state": "none.state"}, errors.NO_SUCH_PATH),
        ({"load_state": "notes.txt"}, errors.BAD_STATE_FILE),
        ({"load_state": "two.state"}, errors.BAD_OPTION),
        ({"load_state": "two.state/foo"}, errors.BAD_STATE_FILE),
        ({"load_state": "/dev/zero"}, errors.BAD_STATE_FILE),
        ({"load_state": "x" * 300}, errors.BAD_STATE_FILE),
    ],
)
def test_what_cannot_be_done_is_said(toy, session_of, tmp_path, monkeypatch, options, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    session = session_of()
    session.prefill([[1], [2]])
    session.state.save("two.state")
    with pytest.raises(SsmExportError) as caught:
        generate(toy(), [1], runner=PlainRunner(toy()), **options)
    assert caught.value.code is code
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_command_line(toy, truth, tmp_path):
    """Two processes: the second goes on where the first stopped."""
    file = str(tmp_path / "a.state")
    base = [sys.executable, "-m", "ssm_export", "generate", str(toy().path)]

    def run(*words: str) -> dict:
        done = subprocess.run([*base, *words, "--json"], capture_output=True, text=True)
        return json.loads(done.stdout)

    run("5,6,7", "--tokens", "--max-tokens", "0", "--save-state", file)
    found = run("--max-tokens", "4", "--load-state", file)
    want, _ = truth.generate(np.array([[5, 6, 7]]), 4)
    assert (found["tokens"], found["earlier_tokens"]) == (want[0].tolist(), 3)
    assert run(str(V), "--tokens", "--load-state", file)["error"]["code"] == errors.BAD_OPTION.code
    assert run("--max-tokens", "4")["error"]["code"] == errors.EMPTY_PROMPT.code
