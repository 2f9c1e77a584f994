"""Toy bundles for the tests of sessions, each made once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from toy_bundle import PlainRunner, Truth, make_toy_bundle, make_weights

from ssm_export import Session
from ssm_export.bundle import Bundle


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Callable[..., Bundle]:
    """``toy(ragged=…, every=…)``: the bundle with these graphs."""
    made: dict[str, Bundle] = {}

    def make(**options: bool) -> Bundle:
        key = str(sorted(options.items()))
        if key not in made:
            made[key] = make_toy_bundle(tmp_path_factory.mktemp("toy") / "toy", **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def runners(toy) -> Callable[..., PlainRunner]:
    """One loaded runner for each of those bundles."""
    made: dict[str, PlainRunner] = {}

    def of(**options: bool) -> PlainRunner:
        key = str(sorted(options.items()))
        if key not in made:
            made[key] = PlainRunner(toy(**options))
        return made[key]

    return of


@pytest.fixture
def session_of(toy, runners) -> Callable[..., Session]:
    """``session_of(ragged=…, every=…)``: a fresh session."""
    return lambda **options: Session(toy(**options), runner=runners(**options))


@pytest.fixture(scope="session")
def truth() -> Truth:
    """The toy model in numpy float64."""
    return Truth(make_weights())
