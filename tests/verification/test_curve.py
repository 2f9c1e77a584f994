"""The curve of the drift check, and the worst error of every output."""

from __future__ import annotations

import pytest
from toy_bundle import Fault, PlainRunner

from ssm_export.verification import verify


@pytest.fixture(scope="module")
def report(sound):
    """Verify of a sound bundle."""
    return verify(
        sound, runner=PlainRunner(sound), checks=("logits", "states", "drift"), save=False
    )


def test_the_curve_has_a_point_at_every_power_of_two(report):
    drift = next(check for check in report.checks if check.name == "drift")
    assert [point.steps for point in drift.curve] == [1 << power for power in range(13)]
    assert all(0 <= point.error <= drift.tolerance for point in drift.curve)
    document = drift.as_json()
    assert [point["steps"] for point in document["curve"]][-1] == 4096
    assert all("curve" not in check.as_json() for check in report.checks if check is not drift)


def test_a_step_graph_that_differs_shows_from_the_first_point_on(verify_fault):
    drift = verify_fault(Fault("weight in_proj", 1, "step"), "drift").checks[0]
    assert drift.status == "failed"
    assert min(point.error for point in drift.curve) > drift.tolerance
    assert {point.tensor.partition(".")[0] for point in drift.curve} <= {
        "past_conv",
        "past_ssm",
        "logits",
    }


def test_every_output_has_its_worst_error_by_both_measures(report):
    names = [f"past_{kind}.{layer}" for layer in range(3) for kind in ("conv", "ssm")]
    expected = [
        (name, measure) for name in [*names, "logits"] for measure in ("element/gate", "nmse")
    ]
    assert [(one.tensor, one.measure) for one in report.outputs] == expected
    worst = max(
        one.error for one in report.outputs if (one.tensor, one.measure) == ("logits", "nmse")
    )
    assert worst == report.measured["logits nmse"]
    assert all(one.ok for one in report.outputs)


def test_a_fault_in_a_layer_shows_in_its_outputs_and_after(verify_fault):
    report = verify_fault(Fault("weight in_proj", 1), "logits", "states")
    failed = {one.tensor for one in report.outputs if not one.ok}
    assert failed == {"past_conv.1", "past_ssm.1", "past_conv.2", "past_ssm.2", "logits"}
