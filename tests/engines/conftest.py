"""The hand-made bundle of two states, new for every test."""

import pytest
from two_state_bundle import Toy, make_toy


@pytest.fixture
def toy(tmp_path) -> Toy:
    return make_toy(tmp_path / "toy")
