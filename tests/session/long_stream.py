"""A long stream through a session of the toy model: memory, and the state against float64."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from toy_bundle import Truth, V

from ssm_export import Session

SAMPLES = 20
"""How often memory is looked at."""


@dataclass(frozen=True)
class Stream:
    """What a stream came to: resident bytes along the way, seconds, and the worst relative L2."""

    resident: tuple[int, ...]
    seconds: float
    worst: float


def token_ids(count: int) -> np.ndarray:
    """(count,) ids, the same for the same count."""
    return np.random.default_rng(3).integers(0, V, count)


def decode(session: Session, truth: Truth, count: int) -> Stream:
    """Step ``count`` tokens one by one through the session, and through numpy in float64."""
    import psutil

    process = psutil.Process()
    ids = token_ids(count)
    resident: list[int] = []
    session.reset()
    began = time.perf_counter()
    for at in range(count):
        session.step(ids[at : at + 1, None])
        if at % (count // SAMPLES) == count // SAMPLES - 1:
            resident.append(process.memory_info().rss)
    seconds = time.perf_counter() - began
    want = truth.start(1)
    for at in range(count):
        truth.token(ids[at : at + 1], want)
    got = session.state.arrays()
    worst = max(relative(got[name], value) for name, value in want.items())
    return Stream(tuple(resident), seconds, worst)


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Relative L2 error."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))
