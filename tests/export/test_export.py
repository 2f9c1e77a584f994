"""The export stage: what a bundle holds, and what bad input leaves behind (nothing)."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.engines import Recurrent, open_runner
from ssm_export.errors import SsmExportError
from ssm_export.exporter import ExportOptions, export
from ssm_export.verification import verify

torch = pytest.importorskip("torch")
QUICK = ExportOptions(parity="quick", lowering="native")


def refused(code, checkpoint, output, options=QUICK):
    """Export must fail with this code and leave no trace; gives the message."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(SsmExportError) as caught:
        export(checkpoint, output, options)
    assert caught.value.code is code, caught.value
    assert sorted(output.parent.iterdir()) == before
    return str(caught.value)


@pytest.fixture
def copy_of(tiny_checkpoint, tmp_path):
    """A checkpoint that a test may spoil, in a folder of its own."""

    def make(family="mamba"):
        folder = tmp_path / "in" / "checkpoint"
        shutil.copytree(tiny_checkpoint(family), folder)
        return folder

    return make


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "bundle"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_bundle_is_whole_and_verified(family, bundle_of, precision):
    bundle = Bundle.open(bundle_of(family, precision=precision, ragged=True))
    manifest = bundle.manifest
    assert manifest.verified
    assert manifest.family == family
    assert manifest.precision == precision
    assert set(manifest.graphs) == {"step", "prefill"}
    assert {entry.kind for entry in manifest.parity} == {"prefill", "ragged"}
    assert (bundle.path / "effective_config.yaml").is_file()
    assert (bundle.path / "config.json").is_file()
    assert json.loads((bundle.path / "reports" / "verify.json").read_text())["ok"] is True
    for form, graphs in manifest.graphs.items():
        for entry in graphs.values():
            model = onnx.load(str(bundle.path / entry.path), load_external_data=False)
            assert entry.bytes < 5_000_000
            for port in (*model.graph.input, *model.graph.output):
                for axis, dim in enumerate(port.type.tensor_type.shape.dim):
                    named = dim.HasField("dim_param")
                    symbolic = axis == 0 or (
                        axis == 1 and port.name == "input_ids" and form == "prefill"
                    )
                    assert named == symbolic, (entry.path, port.name, axis)


def test_both_graphs_point_into_one_file(family, bundle_of):
    bundle = Bundle.open(bundle_of(family))
    places = {}
    for form in ("step", "prefill"):
        model = onnx.load(str(bundle.graph_path(form, "canonical")), load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.external_data:
                found = {e.key: e.value for e in tensor.external_data}
                assert found["location"] == "weights.data"
                places.setdefault(tensor.name, set()).add((found["offset"], found["length"]))
    assert places
    assert all(len(found) == 1 for found in places.values())


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("batch", [1, 3])
def test_against_transformers_at_any_length(family, bundle_of, tiny_checkpoint, tokens, batch):
    import transformers

    bundle = Bundle.open(bundle_of(family, logits="all"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint(family)).double()
    ids = np.random.default_rng(tokens).integers(0, bundle.manifest.sizes["V"], (batch, tokens))
    runner = open_runner(bundle)
    logits, _ = Recurrent(bundle, runner).prefill(ids)
    runner.close()
    with torch.no_grad():
        expected = model(input_ids=torch.as_tensor(ids)).logits.numpy()
    assert ((logits - expected) ** 2).sum() / (expected**2).sum() < 1e-10


def test_verify_against_transformers(family, bundle_of):
    import ssm_export

    report = ssm_export.verify(
        bundle_of(family), against="transformers", checks=["logits", "states"]
    )
    assert report.ok, report.as_json()
    assert all(check.status == "passed" for check in report.checks)


def test_lowerings_agree(family, bundle_of):
    bundle = Bundle.open(bundle_of(family, lowering="auto"))
    assert set(bundle.manifest.graphs["step"]) == {"canonical", "native", "ort"}
    assert bundle.manifest.lowering["chosen"] in ("native", "ort")
    for lowering in ("canonical", "native", "ort"):
        report = verify(bundle, lowering=lowering, save=False, checks=["logits", "states"])
        assert report.ok, report.as_json()


def test_an_unknown_family_is_refused(copy_of, output):
    folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mambo"}))
    message = refused(errors.UNKNOWN_MODEL_TYPE, folder, output)
    assert "'mambo'" in message
    assert "'mamba'" in message


def test_weights_that_disagree_with_the_config(copy_of, output):
    folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "state_size": 8}))
    message = refused(errors.SHAPE_MISMATCH, folder, output)
    assert "A_log" in message or "x_proj" in message
    assert "expected (" in message


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_missing_and_unexpected_weights(copy_of, output):
    folder = copy_of()
    change_weights(folder, lambda t: t.pop("backbone.layers.1.mixer.D"))
    assert "backbone.layers.1.mixer.D" in refused(errors.MISSING_TENSORS, folder, output)
    shutil.rmtree(folder)
    folder = copy_of()
    change_weights(folder, lambda t: t.update(surprise=torch.zeros(2)))
    assert "'surprise'" in refused(errors.UNEXPECTED_TENSORS, folder, output)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(copy_of, output, value):
    folder = copy_of()

    def spoil(tensors):
        tensors["backbone.layers.2.norm.weight"][3] = value

    change_weights(folder, spoil)
    assert "backbone.layers.2.norm.weight" in refused(errors.NOT_FINITE, folder, output)


def test_weights_beyond_fp16(copy_of, output):
    folder = copy_of()

    def spoil(tensors):
        tensors["backbone.layers.0.mixer.in_proj.weight"][0, 0] = 1e6

    change_weights(folder, spoil)
    options = ExportOptions(parity="quick", lowering="native", precision="fp16")
    message = refused(errors.NOT_FINITE, folder, output, options)
    assert "float16" in message
    assert "bf16" in message


def test_an_existing_output_is_kept(tiny_checkpoint, output):
    output.mkdir()
    (output / "precious").write_text("mine")
    refused(errors.OUTPUT_EXISTS, tiny_checkpoint("mamba"), output)
    assert (output / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "int8"),
        ("state_dtype", "bf16"),
        ("lowering", "plugin!"),
        ("logits", "first"),
        ("parity", "none"),
    ],
)
def test_bad_options(tiny_checkpoint, output, name, value):
    message = refused(
        errors.BAD_OPTION, tiny_checkpoint("mamba"), output, ExportOptions(**{name: value})
    )
    assert name.replace("_", "-") in message


def test_a_full_disk_leaves_nothing(tiny_checkpoint, output, monkeypatch):
    """The write of the weights fails as it does when no space is left."""
    import errno

    from ssm_export import external

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(external.os, "fsync", full)
    refused(errors.DISK_FULL, tiny_checkpoint("mamba"), output)


def test_a_dry_run_writes_nothing(tiny_checkpoint, output):
    report = export(tiny_checkpoint("mamba"), output, QUICK, dry_run=True)
    assert report.bundle is None
    assert report.plan["family"] == "mamba"
    assert not output.exists()


def test_altered_weights_are_noticed(bundle_of, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of("mamba"), bundle)
    with (bundle / "onnx" / "weights.data").open("r+b") as stream:
        stream.seek(100)
        byte = stream.read(1)
        stream.seek(100)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(SsmExportError) as caught:
        Bundle.open(bundle)
    assert caught.value.code is errors.HASH_MISMATCH
    assert "weights.data" in str(caught.value)


def test_a_newer_manifest_is_refused(bundle_of, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of("mamba"), bundle)
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace("bundle@1", "bundle@2"))
    with pytest.raises(SsmExportError) as caught:
        Bundle.open(bundle)
    assert caught.value.code is errors.NEWER_SCHEMA


def test_the_mamba_ssm_layout_gives_the_same_graphs(bundle_of, tiny_checkpoint, tmp_path):
    """The same weights in the original layout: every logit equal to the last bit."""
    from safetensors.torch import load_file

    source = tiny_checkpoint("mamba")
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    folder = tmp_path / "original"
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    original = {
        "d_model": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "ssm_cfg": {"d_state": config["state_size"]},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(original))
    export(folder, tmp_path / "bundle", QUICK)
    ids = np.arange(20)[None]
    logits = []
    for path in (tmp_path / "bundle", bundle_of("mamba", lowering="native")):
        bundle = Bundle.open(path)
        logits.append(Recurrent(bundle, open_runner(bundle)).prefill(ids)[0])
    np.testing.assert_array_equal(*logits)
