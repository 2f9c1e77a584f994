"""The ONNX Runtime runner against a numpy loop over tokens, and what it says of wrong feeds."""

import sys

import numpy as np
import pytest
from two_state_bundle import V, edit_graph, make_toy

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines import Recurrent, available_runners, open_runner
from ssm_export.errors import SsmExportError

# Few sums of a handful of terms: a rounding or two of each type.
CLOSE = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}


def _ids(rows, tokens):
    return np.random.default_rng(tokens).integers(0, V, (rows, tokens))


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("tokens", [1, 2, 65])
def test_both_forms_compute_what_numpy_computes(tmp_path, precision, rows, tokens, low_memory):
    toy = make_toy(tmp_path / "toy", precision)
    model = Recurrent(toy.bundle, open_runner(toy.bundle, threads=1, low_memory=low_memory))
    ids, state = _ids(rows, tokens), toy.states(rows)
    logits, after = model.prefill(ids, state)
    truth = toy.truth(ids, state)
    close = {"rtol": CLOSE[precision], "atol": CLOSE[precision] * max(1, tokens) ** 0.5}
    np.testing.assert_allclose(logits, truth["logits"], **close)
    np.testing.assert_allclose(after["past_ssm.0"], truth["present_ssm.0"], **close)
    np.testing.assert_array_equal(after["past_conv.0"], truth["present_conv.0"])
    next_ids = _ids(rows, 1)
    logits, _ = model.step(next_ids, after)
    both = np.concatenate([ids, next_ids], axis=1)
    np.testing.assert_allclose(logits, toy.truth(both, state)["logits"], **close)


def test_bf16_is_fed_and_gives_float32(tmp_path):
    pytest.importorskip("ssm_export.lowering.widen")
    toy = make_toy(tmp_path / "toy", "bf16")
    model = Recurrent(toy.bundle, open_runner(toy.bundle, threads=1))
    ids, state = _ids(2, 9), toy.states(2)
    logits, after = model.prefill(ids, state)
    truth = toy.truth(ids, state)
    assert logits.dtype == after["past_conv.0"].dtype == np.float32
    np.testing.assert_allclose(logits, truth["logits"], rtol=CLOSE["bf16"], atol=CLOSE["bf16"])
    np.testing.assert_allclose(after["past_ssm.0"], truth["present_ssm.0"], rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in (toy.bundle.path / "onnx").iterdir()) == [
        "prefill.native.onnx",
        "prefill.onnx",
        "step.native.onnx",
        "step.onnx",
        "weights.data",
    ]


def test_info_names_the_runtime_and_the_lowering(toy):
    assert open_runner(toy.bundle).info.lowering == "canonical"
    info = open_runner(toy.bundle, lowering="native").info
    assert (info.name, info.device, info.lowering) == ("onnxruntime", "cpu", "native")
    assert info.versions["onnxruntime"][0].isdigit()


def _feeds(toy, tokens=1, **changed):
    feeds = {"input_ids": _ids(2, tokens), **toy.states(2), **changed}
    return {name: array for name, array in feeds.items() if array is not None}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"past_ssm.0": None}, "lacks 'past_ssm.0'"),
        ({"past_ssm.1": np.zeros(2, np.float32)}, "has 'past_ssm.1', which the graph does not"),
        ({"input_ids": np.zeros((2, 3), np.int64)}, r"'input_ids' has shape \(2, 3\)"),
        ({"input_ids": np.zeros((2, 1), np.int32)}, "'input_ids' is int32, the graph takes int64"),
        ({"input_ids": [[1], [2]]}, "'input_ids' is list, not a numpy array"),
        ({"past_conv.0": np.zeros((2, 1, 5), np.float32)}, r"'past_conv.0' has shape \(2, 1, 5\)"),
        ({"past_conv.0": np.zeros((3, 1, 4), np.float32)}, "the axis 'batch' is 2 in 'input_ids'"),
        ({"past_conv.0": np.zeros((2, 1, 4), np.float16)}, "'past_conv.0' is float16"),
        ({"past_ssm.0": np.zeros((2, 4), np.float32)}, r"'past_ssm.0' has shape \(2, 4\)"),
    ],
)
def test_a_wrong_feed_is_named(toy, changed, said):
    runner = open_runner(toy.bundle, threads=1)
    with pytest.raises(SsmExportError, match=said) as caught:
        runner.run("step", _feeds(toy, **changed))
    assert caught.value.code == errors.BAD_FEED
    assert "step graph" in str(caught.value)


def test_prefill_of_no_tokens_is_refused(toy):
    with pytest.raises(SsmExportError, match=r"shape \(2, 0\), which holds nothing") as caught:
        open_runner(toy.bundle, threads=1).run("prefill", _feeds(toy, tokens=0))
    assert caught.value.code == errors.BAD_FEED


def test_an_operator_that_fails_is_named(toy):
    feeds = _feeds(toy)
    feeds["input_ids"][0] = V
    with pytest.raises(SsmExportError, match="Gather 'embed' failed") as caught:
        open_runner(toy.bundle, threads=1).run("step", feeds)
    assert caught.value.code == errors.RUNNER_FAILED


def test_a_graph_that_cannot_be_loaded_is_named(toy):
    def break_it(model):
        next(node for node in model.graph.node if node.name == "lm_head").op_type = "NoSuchOperator"

    edit_graph(toy.bundle, "prefill", break_it, "canonical")
    runner = open_runner(toy.bundle, threads=1)
    runner.run("step", _feeds(toy))
    with pytest.raises(SsmExportError, match="NoSuchOperator") as caught:
        runner.run("prefill", _feeds(toy, tokens=2))
    assert caught.value.code == errors.RUNNER_FAILED
    assert "prefill.onnx" in str(caught.value)


def test_nothing_is_printed(toy, capfd):
    runner = open_runner(toy.bundle, threads=1, low_memory=True)
    runner.run("prefill", _feeds(toy, tokens=7))
    runner.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("onnxruntme", {}, errors.BAD_OPTION),
        ("onnxruntime", {"threads": 0}, errors.BAD_OPTION),
        ("onnxruntime", {"lowering": "plugin"}, errors.BAD_OPTION),
        ("tensorrt-rtx", {"lowering": "ort"}, errors.BAD_OPTION),
    ],
)
def test_options_that_cannot_be(toy, name, options, code):
    with pytest.raises(SsmExportError) as caught:
        open_runner(toy.bundle, name, **options)
    assert caught.value.code == code


def test_the_cuda_provider_is_asked_for_by_name(toy):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(SsmExportError, match="CUDAExecutionProvider") as caught:
        open_runner(toy.bundle, "onnxruntime-cuda")
    assert caught.value.code == errors.MISSING_PROVIDER
    assert caught.value.code.exit_status == 3


def test_without_the_package_the_extra_is_named(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SsmExportError, match=r"ssm-export\[cpu\]") as caught:
        open_runner(toy.bundle)
    assert caught.value.code == errors.MISSING_PACKAGE
    found = {runner.name: runner for runner in available_runners()}
    assert not found["onnxruntime"].available
    assert "not installed" in found["onnxruntime"].detail


def test_a_broken_installation_is_an_answer(monkeypatch):
    class Broken:
        def get_available_providers(self):
            raise OSError("libsomething.so: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "onnxruntime", Broken())
    found = {runner.name: runner for runner in available_runners()}
    assert not found["onnxruntime"].available
    assert "libsomething.so" in found["onnxruntime"].detail


def test_a_path_opens_as_well(toy):
    assert open_runner(toy.bundle.path).info.name == "onnxruntime"
    with pytest.raises(SsmExportError) as caught:
        open_runner(toy.bundle.path / "nothing")
    assert caught.value.code == errors.NO_SUCH_PATH


def test_altered_weights_do_not_open(toy):
    weights = toy.bundle.path / "onnx/weights.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(SsmExportError) as caught:
        open_runner(str(toy.bundle.path))
    assert caught.value.code == errors.HASH_MISMATCH
    assert isinstance(Bundle.open(toy.bundle.path, check_hashes=False), Bundle)
