"""What every family file must give, and what a config may not say."""

from __future__ import annotations

import pytest
from families import FAMILIES, tiny_values

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.models import families
from ssm_export.models import family as family_of
from ssm_export.ops import all_ops
from ssm_export.trace import build_fake


def test_every_family_has_a_file_and_a_yaml():
    assert list(families()) == FAMILIES


def test_a_family_says_its_states(family_model):
    model = family_model
    states = model.states()
    assert len(states) >= model.config.num_hidden_layers
    names = [state.name_in for state in states] + [state.name_out for state in states]
    assert len(set(names)) == len(names)
    for state in states:
        assert state.shape[0] == "batch"
        assert all(isinstance(size, int) and size > 0 for size in state.shape[1:])
        assert len(state.layout.split(",")) == len(state.shape)


@pytest.fixture
def family_model(family):
    model_class = family_of(family)
    config = model_class.config_class.from_dict(tiny_values(family))
    model, _ = build_fake(lambda: model_class(config))
    return model


def test_the_yaml_names_real_operators(family):
    from ssm_export.listing import models

    known = {item["name"]: item for item in models()}[family]
    assert set(known["operators"]) <= set(all_ops())


@pytest.mark.parametrize("wrong", ["mamba3", "Mamba", "llama", ""])
def test_an_unknown_family_names_the_nearest(wrong):
    with pytest.raises(SsmExportError) as caught:
        family_of(wrong)
    assert caught.value.code is errors.UNKNOWN_MODEL_TYPE
    assert "mamba" in caught.value.what


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", "32"),
        ("num_hidden_layers", -1),
        ("state_size", 1.5),
        ("conv_kernel", 1),
        ("conv_kernel", 9),
        ("hidden_act", "gelu"),
        ("layer_norm_epsilon", 0),
        ("vocab_size", None),
    ],
)
def test_a_bad_value_is_named(family, key, value):
    values = {**tiny_values(family), key: value}
    with pytest.raises(SsmExportError) as caught:
        family_of(family).config_class.from_dict(values)
    assert caught.value.code is errors.BAD_MODEL_CONFIG
    assert f"'{key}'" in caught.value.what


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_heads", 5), ("n_groups", 3), ("time_step_limit", [0.2, 0.1]), ("head_dim", 0)],
)
def test_mamba2_sizes_must_agree(key, value):
    with pytest.raises(SsmExportError) as caught:
        family_of("mamba2").config_class.from_dict({**tiny_values("mamba2"), key: value})
    assert caught.value.code is errors.BAD_MODEL_CONFIG


def test_mamba_rank_must_be_a_number():
    with pytest.raises(SsmExportError, match="time_step_rank"):
        family_of("mamba").config_class.from_dict({**tiny_values("mamba"), "time_step_rank": "big"})
