"""Sort and cluster: few scales for the many channels of a scan input (Quamba2, arXiv 2503.22879).

Heads of Mamba-2 that share B and C are sorted by their largest amplitude and cut into groups, then
the channels of each group's heads likewise. A channel is quantized with the step of its cluster's
largest amplitude, so the lists are cut where the sum of the squared steps is least. (Quamba2 gives
the same channel clusters to all heads of a group; here each channel of each head is on its own.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError


@dataclass(frozen=True, eq=False)
class Clusters:
    """Channels of the scan input in clusters.

    Attributes:
        amplitude: float32 (H,P) or (D,): the largest amplitude in the cluster of the channel.
        labels: int64, same shape: number of the cluster, 0…count−1.
        count: clusters that exist, so distinct scales to store.
    """

    amplitude: np.ndarray
    labels: np.ndarray
    count: int


def cluster(amplitudes: np.ndarray, count: int) -> np.ndarray:
    """Labels int64 (D,) of at most ``count`` clusters, 0 for the smallest amplitudes.

    amplitudes: (D,), finite, ≥ 0. Among all clusterings into ``count`` parts this one has the least
    Σᵢ (largest amplitude of the cluster of i)², found exactly by dynamic programming over the
    sorted list. Equal amplitudes share a cluster. NOT_FINITE and BAD_OPTION for bad input.
    """
    amplitudes = np.asarray(amplitudes, np.float64)
    if amplitudes.ndim != 1 or amplitudes.size == 0 or count < 1:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"{count} clusters of amplitudes in shape {list(amplitudes.shape)} cannot be made",
            fix="take at least one cluster and one channel",
        )
    if not np.isfinite(amplitudes).all() or amplitudes.min() < 0:
        raise SsmExportError(
            errors.NOT_FINITE,
            "the amplitude of a channel is NaN, Inf or negative",
            where=f"channel {int(np.argmin(np.isfinite(amplitudes) & (amplitudes >= 0)))}",
            fix="calibrate with data on which the float model stays finite",
        )
    distinct, place, weight = np.unique(amplitudes, return_inverse=True, return_counts=True)
    count = min(count, len(distinct))
    below = np.concatenate([[0], np.cumsum(weight)])  # channels under each possible cut
    # best[k]: least cost of the first k distinct amplitudes in the clusters so far.
    best = np.full(len(distinct) + 1, np.inf)
    best[0] = 0.0
    cuts = np.zeros((count, len(distinct) + 1), np.int64)
    for used in range(count):
        longer = np.full_like(best, np.inf)
        for end in range(used + 1, len(distinct) + 1):
            costs = best[used:end] + (below[end] - below[used:end]) * distinct[end - 1] ** 2
            at = int(costs.argmin())
            longer[end], cuts[used, end] = costs[at], used + at
        best = longer
    labels, end = np.empty(len(distinct), np.int64), len(distinct)
    for used in reversed(range(count)):
        labels[cuts[used, end] : end] = used
        end = int(cuts[used, end])
    return labels[place.reshape(-1)]


def group_channels(amplitudes: np.ndarray, count: int) -> Clusters:
    """Clusters of the channels of Mamba-1's scan input; amplitudes (D,), at most ``count``."""
    amplitudes = np.asarray(amplitudes, np.float32)
    return _clusters(amplitudes, cluster(amplitudes, count))


def group_heads(
    amplitudes: np.ndarray, groups: int, *, head_groups: int = 4, channel_groups: int = 4
) -> Clusters:
    """Clusters of the channels of Mamba-2's scan input; amplitudes (H,P).

    Args:
        amplitudes: of each channel p of each head h, (H,P).
        groups: G, head h belongs to group h·G//H, which shares B and C.
        head_groups: clusters of heads within each of the G, by their largest amplitude.
        channel_groups: clusters of channels within each cluster of heads.

    Returns:
        At most G·head_groups·channel_groups clusters. BAD_OPTION if G does not divide H.
    """
    amplitudes = np.asarray(amplitudes, np.float32)
    if amplitudes.ndim != 2 or groups < 1 or amplitudes.shape[0] % groups:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"amplitudes of shape {list(amplitudes.shape)} do not fall into {groups} groups",
            fix="pass (heads, head width) with heads a multiple of the groups",
        )
    labels = np.empty(amplitudes.shape, np.int64)
    used = 0
    for heads in np.split(np.arange(len(amplitudes)), groups):
        of_head = cluster(amplitudes[heads].max(axis=1), head_groups)
        for which in range(int(of_head.max()) + 1):
            chosen = heads[of_head == which]
            inner = cluster(amplitudes[chosen].reshape(-1), channel_groups)
            labels[chosen] = used + inner.reshape(len(chosen), -1)
            used += int(inner.max()) + 1
    return _clusters(amplitudes, labels)


def _clusters(amplitudes: np.ndarray, labels: np.ndarray) -> Clusters:
    count = int(labels.max()) + 1
    largest = np.zeros(count, np.float32)
    np.maximum.at(largest, labels, amplitudes)
    return Clusters(largest[labels], labels, count)
