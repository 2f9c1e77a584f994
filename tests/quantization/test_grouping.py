"""Clusters of channels, against all clusterings of short lists."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.grouping import cluster, group_channels, group_heads


def squared_steps(amplitudes, labels) -> float:
    """Sum over channels of the square of the largest amplitude in the channel's cluster."""
    return sum(
        max(a for a, other in zip(amplitudes, labels, strict=True) if other == label) ** 2
        for label in labels
    )


@settings(max_examples=40, deadline=None)
@given(
    amplitudes=st.lists(st.integers(0, 40).map(float), min_size=1, max_size=7),
    count=st.integers(1, 3),
)
def test_no_clustering_at_all_is_better(amplitudes, count):
    labels = cluster(np.array(amplitudes), count)
    every = product(range(count), repeat=len(amplitudes))
    best = min(squared_steps(amplitudes, one) for one in every)
    assert squared_steps(amplitudes, labels.tolist()) == best
    assert len(set(labels.tolist())) == labels.max() + 1 <= count


def test_labels_ascend_with_the_amplitude():
    amplitudes = np.array([100.0, 1.0, 1.1, 9.0, 0.9, 10.0])
    np.testing.assert_array_equal(cluster(amplitudes, 3), [2, 0, 0, 1, 0, 1])


def test_equal_amplitudes_share_a_cluster():
    np.testing.assert_array_equal(cluster(np.full(5, 2.0), 3), np.zeros(5))
    np.testing.assert_array_equal(cluster(np.zeros(5), 3), np.zeros(5))


def test_channels_of_mamba_1():
    rng = np.random.default_rng(0)
    amplitudes = np.exp(rng.standard_normal(700)).astype(np.float32)
    clusters = group_channels(amplitudes, 8)
    assert clusters.count == 8 == len(np.unique(clusters.amplitude))
    assert (clusters.amplitude >= amplitudes).all()
    for label in range(8):
        inside = clusters.labels == label
        np.testing.assert_array_equal(clusters.amplitude[inside], amplitudes[inside].max())
    losses = [squared_steps(amplitudes[:60], cluster(amplitudes[:60], n)) for n in (1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 4


def test_heads_of_mamba_2_stay_in_their_groups():
    rng = np.random.default_rng(1)
    amplitudes = np.exp(rng.standard_normal((8, 16)) + 2 * rng.standard_normal((8, 1)))
    amplitudes = amplitudes.astype(np.float32)
    clusters = group_heads(amplitudes, 2, head_groups=2, channel_groups=3)
    assert clusters.amplitude.shape == (8, 16) and clusters.amplitude.dtype == np.float32
    assert clusters.count <= 2 * 2 * 3
    assert (clusters.amplitude >= amplitudes).all()
    assert not set(clusters.labels[:4].flat) & set(clusters.labels[4:].flat)
    for group in (slice(0, 4), slice(4, 8)):
        # Heads of a group share all of their clusters' labels with their own head group only.
        sets = {frozenset(clusters.labels[h].tolist()) for h in range(*group.indices(8))}
        families = [a | b for a in sets for b in sets if a & b]
        assert len({label for family in families for label in family}) <= 6
    for label in range(clusters.count):
        inside = clusters.labels == label
        np.testing.assert_array_equal(clusters.amplitude[inside], amplitudes[inside].max())


def test_heads_by_hand():
    amplitudes = np.array([[1, 8], [50, 90], [2, 9], [60, 70]], np.float32)
    clusters = group_heads(amplitudes, 1, head_groups=2, channel_groups=2)
    np.testing.assert_array_equal(clusters.amplitude, [[2, 9], [70, 90], [2, 9], [70, 70]])
    # 3·70² + 90² is less than 2·60² + 2·90².
    assert clusters.count == 4


def test_grouping_lowers_the_error_of_quantization():
    """Heads of different loudness, 8 bits: at least 10 dB over one scale for all."""
    rng = np.random.default_rng(2)
    loud = np.exp(1.5 * rng.standard_normal((1, 8, 1)) + 0.5 * rng.standard_normal((1, 8, 16)))
    x = rng.standard_normal((500, 8, 16)) * loud
    clusters = group_heads(np.abs(x).max(axis=0), 1)

    def relative(amplitude):
        step = amplitude / 127
        error = np.rint(x / step) * step - x
        return (np.square(error).sum(axis=0) / np.square(x).sum(axis=0)).mean()

    assert relative(clusters.amplitude.astype(np.float64)) < relative(np.abs(x).max()) / 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_amplitudes_are_refused(bad):
    with pytest.raises(SsmExportError, match="channel 1") as caught:
        cluster(np.array([1.0, bad, 2.0]), 2)
    assert caught.value.code is errors.NOT_FINITE


def test_bad_shapes_are_refused():
    for call in (
        lambda: cluster(np.ones(3), 0),
        lambda: cluster(np.ones((2, 2)), 1),
        lambda: cluster(np.ones(0), 1),
        lambda: group_heads(np.ones((6, 2)), 4),
        lambda: group_heads(np.ones(6), 2),
    ):
        with pytest.raises(SsmExportError) as caught:
            call()
        assert caught.value.code is errors.BAD_OPTION
