"""Generation: greedy tokens are the truth's, text streams in whole characters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from toy_bundle import PlainRunner, Truth, V, make_toy_bundle, make_weights

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.generation import Sampler, TextStream, end_tokens, generate


class Bytes:
    """A tokenizer whose ids are bytes."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def streamed(text: str, stop=()):
    pieces: list[str] = []
    stream = TextStream(Bytes(), stop, pieces.append)
    stopped = False
    for byte in text.encode():
        if stream.push(byte):
            stopped = True
            break
    if not stopped:
        stream.finish()
    return pieces, stream.text, stopped


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy") / "toy")


def set_config(bundle, **values):
    """Write the end tokens; no hash is compared once a bundle is open."""
    (bundle.path / "config.json").write_text(json.dumps(values))


def test_greedy_tokens_are_those_of_the_truth(bundle):
    want, _ = Truth(make_weights()).generate(np.array([[5, 6, 7]]), 20)
    got = generate(bundle, [5, 6, 7], runner=PlainRunner(bundle), max_tokens=20)
    assert got.tokens == tuple(want[0])
    assert (got.text, got.finish, got.prompt_tokens) == ("", "length", (5, 6, 7))
    assert got.timings.tokens_per_s > 0
    assert json.loads(json.dumps(got.as_json()))["tokens"] == list(got.tokens)


def test_a_prompt_longer_than_a_chunk_gives_the_same_tokens(bundle):
    prompt = list(range(V))
    whole = generate(bundle, prompt, runner=PlainRunner(bundle), max_tokens=12)
    cut = generate(bundle, prompt, runner=PlainRunner(bundle, max_chunk=7), max_tokens=12)
    assert cut.tokens == whole.tokens


@pytest.mark.parametrize("as_list", [False, True])
def test_an_end_token_ends_the_text_and_is_not_part_of_it(bundle, as_list):
    want, _ = Truth(make_weights()).generate(np.array([[5, 6, 7]]), 20)
    end = int(want[0, 6])
    first = list(want[0]).index(end)
    set_config(bundle, eos_token_id=[end] if as_list else end)
    got = generate(bundle, [5, 6, 7], runner=PlainRunner(bundle), max_tokens=20)
    set_config(bundle)
    assert (got.finish, got.tokens) == ("eos", tuple(want[0, :first]))


def test_generation_config_is_asked_before_config(tmp_path):
    assert end_tokens(tmp_path) == frozenset()
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert end_tokens(tmp_path) == {3}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    assert end_tokens(tmp_path) == {4, 5}
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 1}')
    assert end_tokens(tmp_path) == {3}


def test_text_goes_through_the_tokenizer_of_the_bundle(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    bundle = make_toy_bundle(tmp_path / "toy")
    letters = {chr(97 + n): n for n in range(26)} | {chr(65 + n): 26 + n for n in range(14)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.save(str(bundle.path / "tokenizer.json"))
    pieces: list[str] = []
    got = generate(bundle, "fgh", runner=PlainRunner(bundle), max_tokens=20, stream=pieces.append)
    want, _ = Truth(make_weights()).generate(np.array([[5, 6, 7]]), 20)
    names = {number: letter for letter, number in letters.items()}
    assert got.text == "".join(names[int(token)] for token in want[0])
    assert "".join(pieces) == got.text
    assert len(pieces) == 20
    stop = got.text[4:6]
    cut = generate(bundle, "fgh", runner=PlainRunner(bundle), max_tokens=20, stop=[stop])
    assert (cut.finish, cut.text) == ("stop", got.text[: got.text.index(stop)])


@pytest.mark.parametrize(
    ("prompt", "options", "code"),
    [
        ([], {}, errors.EMPTY_PROMPT),
        ("text", {}, errors.NO_TOKENIZER),
        ([V], {}, errors.BAD_OPTION),
        ([-1], {}, errors.BAD_OPTION),
        ([1], {"max_tokens": 0}, errors.BAD_OPTION),
        ([1], {"temperature": -1.0}, errors.BAD_OPTION),
        ([1], {"top_p": 0.0}, errors.BAD_OPTION),
        ([1], {"top_k": -1}, errors.BAD_OPTION),
        ([1], {"seed": -1}, errors.BAD_OPTION),
        ([1], {"seed": 0.5, "temperature": 1.0}, errors.BAD_OPTION),
    ],
)
def test_what_cannot_be_done_is_said(bundle, prompt, options, code):
    with pytest.raises(SsmExportError) as caught:
        generate(bundle, prompt, runner=PlainRunner(bundle), **options)
    assert caught.value.code is code


def test_characters_of_several_bytes_come_whole():
    pieces, text, _ = streamed("añ€😀z")
    assert pieces == ["a", "ñ", "€", "😀", "z"]
    assert text == "añ€😀z"


def test_a_character_that_never_ends_is_given_at_the_end():
    stream = TextStream(Bytes())
    for byte in b"a\xe2\x82":
        stream.push(byte)
    assert stream.text == "a"
    stream.finish()
    assert stream.text == "a\N{REPLACEMENT CHARACTER}"


def test_nothing_of_a_stop_string_is_shown():
    pieces, text, stopped = streamed("one END two", stop=["END"])
    assert (text, stopped) == ("one ", True)
    assert "E" not in "".join(pieces)


def test_what_only_looks_like_a_stop_string_is_shown():
    _, text, stopped = streamed("one EN two E", stop=["END"])
    assert (text, stopped) == ("one EN two E", False)


def test_the_first_of_several_stop_strings_ends_the_text():
    _, text, stopped = streamed("abcdef", stop=["ef", "cde"])
    assert (text, stopped) == ("ab", True)


class TestSampler:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))

    def drawn(self, count=4000, **options):
        pick = Sampler(temperature=options.pop("temperature", 1.0), **options).picker()
        return np.bincount([pick(self.logits) for _ in range(count)], minlength=4) / count

    def test_probabilities_are_those_of_the_logits(self):
        assert self.drawn() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)

    def test_temperature_sharpens(self):
        squared = np.array([0.25, 0.09, 0.0225, 0.0025])
        assert self.drawn(temperature=0.5) == pytest.approx(squared / squared.sum(), abs=0.03)

    def test_top_k_keeps_the_likeliest(self):
        assert self.drawn(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)

    def test_top_p_keeps_the_fewest_that_reach_it(self):
        assert self.drawn(top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
        assert self.drawn(top_p=0.01) == pytest.approx([1, 0, 0, 0])

    def test_a_seed_repeats(self):
        one, two = (Sampler(1.0, seed=3).picker() for _ in range(2))
        assert [one(self.logits) for _ in range(50)] == [two(self.logits) for _ in range(50)]

    def test_a_seed_may_be_of_any_size_and_of_numpy(self):
        for seed in (2**200, np.int64(7), np.iinfo(np.int64).max):
            pick = Sampler(1.0, seed=seed).picker(row=1)
            assert 0 <= pick(self.logits) < 4

    @pytest.mark.parametrize("read", [0, 1, 3, 4, 5, 1000, 10**12])
    def test_what_is_drawn_goes_by_the_tokens_read(self, read):
        """Numpy's own doubles of the same stream, and the token where the probabilities reach."""
        bits = np.random.Philox(3 + 2)
        bits.advance(read // 4)
        numbers = np.random.Generator(bits).random(read % 4 + 8)[read % 4 :]
        want = [int((np.array([0.5, 0.8, 0.95]) <= number).sum()) for number in numbers]
        for first in range(8):
            pick = Sampler(1.0, seed=3).picker(row=2, tokens_read=read + first)
            assert [pick(self.logits) for _ in numbers[first:]] == want[first:]

    @pytest.mark.parametrize("wrong", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
    def test_logits_that_are_no_numbers_are_refused(self, wrong):
        with pytest.raises(SsmExportError, match="NaN or Inf") as caught:
            Sampler(1.0).picker()(np.array(wrong))
        assert caught.value.code is errors.RUNNER_FAILED
