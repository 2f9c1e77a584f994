"""A sound bundle passes every check; each planted fault fails the right one and names its layer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from toy_bundle import Fault, PlainRunner, Truth, make_toy_bundle, make_weights

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.errors import SsmExportError
from ssm_export.verification import CHECKS, verify

BEFORE = "before the convolution of layer {0}"
INSIDE = "inside layer {0}"


def results(report):
    return {check.name: check for check in report.checks}


@pytest.mark.parametrize("every", [False, True], ids=["last logits", "all logits"])
def test_a_sound_bundle_passes_every_check(tmp_path, every):
    bundle = make_toy_bundle(tmp_path / "toy", ragged=True, every=every)
    report = verify(bundle, runner=PlainRunner(bundle))
    assert [check.name for check in report.checks] == [name for name in CHECKS if name != "codes"]
    assert {check.status for check in report.checks} == {"passed"}
    assert report.ok
    assert all(check.worst <= check.tolerance for check in report.checks)


def test_the_report_is_saved_and_the_worst_errors_reach_the_manifest(tmp_path):
    bundle = make_toy_bundle(tmp_path / "toy")
    report = verify(bundle, runner=PlainRunner(bundle), checks=["logits", "ragged"])
    saved = json.loads((bundle.path / "reports/verify.json").read_text())
    assert {"bundle": str(bundle.path), **saved} == json.loads(json.dumps(report.as_json()))
    assert {"name", "ok", "worst", "tolerance", "where"} <= saved["checks"][0].keys()
    measured = Bundle.open(bundle.path).manifest.measured
    assert 0 < measured["plain/canonical/logits nmse"] < 1e-12
    assert list(bundle.path.glob("reports/.*")) == []


def test_a_check_that_is_not_run_says_so_and_is_no_pass(tmp_path):
    bundle = make_toy_bundle(tmp_path / "toy")
    report = verify(bundle, runner=PlainRunner(bundle), checks=["ragged"], save=False)
    (check,) = report.as_json()["checks"]
    assert (check["status"], check["ok"], check["worst"]) == ("not run", None, None)
    assert "sequence_lengths" in check["where"]
    assert not report.ok
    assert bundle.manifest.measured == {}


def test_a_bundle_without_a_drift_vector_does_not_pass_the_drift_check(tmp_path):
    bundle = make_toy_bundle(tmp_path / "toy")
    kept = [entry for entry in bundle.manifest.parity if entry.kind != "drift"]
    bundle.manifest.parity = tuple(kept)
    report = verify(bundle, runner=PlainRunner(bundle), checks=["drift", "logits"], save=False)
    assert results(report)["drift"].status == "not run"
    assert "records no 'drift'" in results(report)["drift"].where
    assert report.ok


@pytest.mark.parametrize(
    ("kind", "layer", "form", "place"),
    [
        ("weight in_proj", 0, "prefill", BEFORE),
        ("weight in_proj", 2, "prefill", BEFORE),
        ("weight in_proj", 0, "step", BEFORE),
        ("weight in_proj", 2, "step", BEFORE),
        ("nan", 1, "prefill", BEFORE),
        ("nan", 1, "step", BEFORE),
        ("chunk boundary", 2, "prefill", INSIDE),
    ],
)
def test_a_fault_in_one_layer_fails_against_the_truth_and_is_named(
    verify_fault, kind, layer, form, place
):
    report = verify_fault(Fault(kind, layer, form), "logits", "states", bisect=True)
    found = results(report)
    assert found["logits"].ok is False
    assert found["states"].ok is False
    assert place.format(layer) in found["states"].where
    first = next(line for line in report.layers if not line.ok)
    assert first.layer == layer


def test_a_fault_after_a_scan_shows_before_the_next_convolution(verify_fault):
    report = verify_fault(Fault("weight out_proj", 0), "states")
    assert BEFORE.format(1) in results(report)["states"].where
    assert "layer 0 after its scan" in results(report)["states"].where


def test_a_fault_in_the_head_leaves_the_states_alone(verify_fault):
    report = verify_fault(Fault("head"), "logits", "states", bisect=True)
    found = results(report)
    assert (found["logits"].ok, found["states"].ok) == (False, True)
    assert [line.tensor for line in report.layers if not line.ok] == ["logits"]


def test_nan_makes_valid_json(verify_fault):
    report = verify_fault(Fault("nan", 1), "logits")
    document = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert document["checks"][0]["worst"] is None
    assert document["ok"] is False


def test_a_prefill_that_forgets_its_state_fails_the_splits_only(verify_fault):
    report = verify_fault(Fault("forgets", 1, "prefill"), "logits", "lengths", "splits")
    found = results(report)
    assert (found["logits"].ok, found["lengths"].ok, found["splits"].ok) == (True, True, False)
    assert INSIDE.format(1) in found["splits"].where


def test_a_step_that_forgets_its_state_is_not_the_prefill(verify_fault):
    report = verify_fault(Fault("forgets", 2, "step"), "prefill equals steps", "splits")
    found = results(report)
    assert (found["prefill equals steps"].ok, found["splits"].ok) == (False, True)
    assert INSIDE.format(2) in found["prefill equals steps"].where


def test_a_fault_past_a_chunk_boundary_fails_the_lengths(verify_fault):
    report = verify_fault(Fault("chunk boundary", 0, "prefill"), "lengths")
    found = results(report)["lengths"]
    assert found.ok is False
    assert found.where.startswith("prefill of 65 tokens")


def test_a_state_that_leaks_across_the_batch_fails_the_rows(verify_fault):
    report = verify_fault(Fault("leak", 1), "batch rows")
    found = results(report)["batch rows"]
    assert found.ok is False
    assert INSIDE.format(1) in found.where


def test_a_state_that_saturates_shows_only_after_many_steps(verify_fault):
    report = verify_fault(
        Fault("saturates", 1), "states", "splits", "prefill equals steps", "drift"
    )
    found = results(report)
    passed = {name: check.ok for name, check in found.items()}
    assert passed == {
        "states": True,
        "splits": True,
        "prefill equals steps": True,
        "drift": False,
    }
    assert INSIDE.format(1) in found["drift"].where


@pytest.mark.parametrize(("fault", "ok"), [("none", True), ("chunk boundary", False)])
def test_where_only_the_last_logits_are_recorded_lengths_are_held_to_the_end(tmp_path, fault, ok):
    bundle = make_toy_bundle(tmp_path / "toy", fault=Fault(fault, 0, "prefill"))
    path = bundle.path / "parity/prefill.npz"
    arrays = dict(np.load(path))
    arrays["logits"] = arrays["logits"][:, -1:]
    np.savez(path, **arrays)
    report = verify(bundle, runner=PlainRunner(bundle), checks=["lengths", "logits"], save=False)
    assert [check.ok for check in report.checks] == [ok, ok]
    if not ok:
        assert "then of the other 69: past_ssm.0 departs first" in results(report)["lengths"].where


def test_padding_that_is_seen_fails_the_ragged_check(verify_fault):
    report = verify_fault(Fault("padding seen", 1), "ragged", "states", ragged=True)
    found = results(report)
    assert (found["ragged"].ok, found["states"].ok) == (False, True)
    assert INSIDE.format(1) in found["ragged"].where


def test_wrong_greedy_tokens_are_named(verify_fault):
    report = verify_fault(Fault("swapped tokens", 0, "step"), "greedy tokens")
    found = results(report)["greedy tokens"]
    assert found.ok is False
    assert found.where.startswith("token 1: ")
    assert found.worst > 100


def test_greedy_tokens_part_only_at_near_ties(sound, tmp_path):
    """A token that the reference took by less than the near-tie margin may be either."""
    entry = next(e for e in sound.manifest.parity if e.kind == "generate")
    arrays = dict(np.load(sound.file(entry.file)))
    arrays["tokens"][0, 40] = (arrays["tokens"][0, 40] + 1) % 40
    for margin, status in ((1e-7, "passed"), (1.0, "failed")):
        folder = tmp_path / status
        bundle = make_toy_bundle(folder)
        arrays["margin"][0, 40] = margin
        arrays["margin"][0, 41:] = 0
        np.savez(folder / "parity/generate.npz", **arrays)
        report = verify(bundle, runner=PlainRunner(bundle), checks=["greedy tokens"], save=False)
        (check,) = report.checks
        assert check.status == status
        assert f"{40 + (status == 'failed')} tokens compared" in check.detail


def test_an_engine_with_a_longest_chunk_is_fed_in_pieces(sound):
    runner = PlainRunner(sound, max_chunk=16)  # it refuses more
    report = verify(sound, runner=runner, save=False)
    assert {check.status for check in report.checks} == {"passed"}


def test_against_a_reference_it_is_asked_for_the_recorded_prompts(sound):
    checks = ["logits", "states", "ragged", "greedy tokens"]
    truth = Truth(make_weights())
    report = verify(
        sound,
        runner=PlainRunner(sound),
        against="torch",
        reference=truth,
        checks=checks,
        save=False,
    )
    assert report.against == "numpy"
    assert {check.status for check in report.checks} == {"passed"}


def test_against_another_model_it_fails(sound):
    other = Truth(make_weights(seed=8))
    report = verify(
        sound,
        runner=PlainRunner(sound),
        against="torch",
        reference=other,
        checks=["logits", "states", "greedy tokens"],
        save=False,
    )
    assert {check.status for check in report.checks} == {"failed"}


def test_a_reference_may_lack_states_but_a_recorded_vector_may_not(sound, tmp_path):
    class NoStates(Truth):
        def forward(self, input_ids):
            return super().forward(input_ids)[0], {}

    report = verify(
        sound,
        runner=PlainRunner(sound),
        against="torch",
        reference=NoStates(make_weights()),
        checks=["states"],
        save=False,
    )
    assert report.checks[0].status == "not run"
    bundle = make_toy_bundle(tmp_path / "toy")
    path = bundle.path / "parity/prefill.npz"
    arrays = {name: value for name, value in np.load(path).items() if name != "past_ssm.1"}
    np.savez(path, **arrays)
    report = verify(bundle, runner=PlainRunner(bundle), checks=["states"], save=False)
    assert report.checks[0].status == "failed"
    assert "past_ssm.1" in report.checks[0].where


def test_usage_errors_are_named(sound):
    with pytest.raises(SsmExportError) as caught:
        verify(sound, runner=PlainRunner(sound), checks=["perplexity"])
    assert caught.value.code is errors.BAD_OPTION
    with pytest.raises(SsmExportError) as caught:
        verify(sound, runner=PlainRunner(sound), against="transformers")
    assert caught.value.code is errors.BAD_OPTION


def test_the_table_names_the_failure(verify_fault):
    from ssm_export.documents.tables import render

    report = verify_fault(Fault("weight in_proj", 1), "states", bisect=True)
    text = render(report.table(), width=160)
    assert "FAILED" in text
    assert "past_conv.1 departs first" in text
    assert "Error per layer" in text
