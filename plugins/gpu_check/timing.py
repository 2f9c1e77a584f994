"""Times of short GPU work: CUDA graphs of many calls on rotated tensors, between two events.

One call is too short to be timed alone, and with the same tensors it would be served from the
cache. So a graph holds the calls of several sets of tensors that together exceed the second-level
cache several times over, and a time is that of a replay divided by its calls.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

REPLAYS: Final = 50
WARM_UP: Final = 10
FEWEST_CALLS: Final = 8
MOST_CALLS: Final = 512
CACHES: Final = 3
"""How many times over the sets exceed the second-level cache."""

Call = Callable[[], Any]


def sets_needed(bytes_per_call: int, cache: int) -> int:
    """How many sets of tensors a graph rotates through."""
    wanted = math.ceil(CACHES * cache / max(bytes_per_call, 1))
    return max(FEWEST_CALLS, min(MOST_CALLS, wanted))


def time_graph(calls: Sequence[Call], replays: int = REPLAYS) -> float:
    """Median µs of one of the calls, captured one after the other in a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(WARM_UP):
        graph.replay()
    return _median(graph.replay, replays) / len(calls)


def time_eager(call: Call, repetitions: int = 5) -> float:
    """Median µs of a call without a graph, the time of launching included."""
    call()
    return _median(call, repetitions)


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes per second, read and written, of a copy far larger than the cache."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    return 2 * size / (time_graph([lambda: target.copy_(source)]) * 1e-6)


def _median(call: Call, repetitions: int) -> float:
    torch.cuda.synchronize()
    pairs = []
    for _ in range(repetitions):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) * 1e3 for begin, end in pairs)
