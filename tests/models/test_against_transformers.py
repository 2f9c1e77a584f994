"""Our torch models in float64 against transformers' full forward of the same checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from ssm_export.checkpoints import open_checkpoint
from ssm_export.models import family as family_class
from ssm_export.references.torch_model import TorchReference
from ssm_export.references.transformers_model import TransformersReference
from ssm_export.trace import build_fake
from ssm_export.weights import Weights

torch = pytest.importorskip("torch")
LENGTHS = (1, 2, 63, 64, 65, 150)
NMSE = 1e-11
"""transformers computes norms and A in fp32 even in a float64 model, which costs about 1e-13."""


@pytest.fixture(scope="module")
def references(family, tiny_checkpoint):
    with open_checkpoint(tiny_checkpoint(family)) as checkpoint:
        model_class = family_class(checkpoint.model_type)
        config = model_class.config_class.from_dict(checkpoint.config)
        model, _ = build_fake(lambda: model_class(config))
        ours = TorchReference(model, Weights(model, checkpoint))
        yield ours, TransformersReference(checkpoint, model.states(), torch.float32)


def nmse(found: np.ndarray, truth: np.ndarray) -> float:
    return float(((found - truth) ** 2).sum() / (truth**2).sum())


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_and_every_state(references, tokens, batch):
    ours, theirs = references
    ids = np.random.default_rng(tokens).integers(0, ours.model.config.vocab_size, (batch, tokens))
    logits, states = ours.forward(ids)
    expected, expected_states = theirs.forward(ids)
    assert nmse(logits, expected) < NMSE
    assert sorted(expected_states) == sorted(states)
    for name, value in expected_states.items():
        assert nmse(states[name], value) < NMSE, name


def test_greedy_tokens(references):
    ours, theirs = references
    ids = np.arange(7)[None]
    tokens, margins = ours.generate(ids, 12)
    expected, expected_margins = theirs.generate(ids, 12)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(margins, expected_margins, atol=1e-5)


def test_right_padded_rows_are_what_they_would_be_alone(references):
    ours, _ = references
    ids = np.random.default_rng(5).integers(0, ours.model.config.vocab_size, (3, 40))
    lengths = np.array([40, 1, 17], dtype=np.int32)
    logits, states = ours.forward(ids, lengths)
    for row, length in enumerate(lengths):
        alone, after = ours.forward(ids[row : row + 1, :length])
        np.testing.assert_allclose(logits[row, :length], alone[0], atol=1e-12)
        for name, value in after.items():
            np.testing.assert_allclose(states[name][row], value[0], atol=1e-12, err_msg=name)


def test_reading_block_by_block_changes_nothing(references):
    ours, _ = references
    ids = np.arange(9)[None]
    kept, _ = ours.forward(ids)
    streaming = TorchReference(ours.model, ours.weights)
    streaming.resident = False
    streamed, _ = streaming.forward(ids)
    np.testing.assert_array_equal(kept, streamed)
