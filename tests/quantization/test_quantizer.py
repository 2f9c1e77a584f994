"""The stage from bundle to bundle: what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import Small

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.errors import SsmExportError
from ssm_export.quantization import calibration, quantizer
from ssm_export.quantization.calibration import Statistics
from ssm_export.quantization.quantizer import QuantizeOptions, prepare, quantize
from ssm_export.verification import verify

ROWS, TOKENS = 6, 48


@pytest.fixture(scope="module", autouse=True)
def short_drift():
    """The drift over 4096 steps has tests of its own."""
    patch = pytest.MonkeyPatch()
    patch.setattr("ssm_export.quantization.drift.STEPS", (16, 32))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    """``ids(V)``: a file of token ids."""
    folder = tmp_path_factory.mktemp("ids")

    def make(size: int, name: str = "ids.npy") -> str:
        path = folder / f"{size}-{name}"
        np.save(path, np.random.default_rng(8).integers(0, size, 2 * ROWS * TOKENS))
        return str(path)

    return make


@pytest.fixture
def source(bundle_of, family):
    return Bundle.open(bundle_of(family))


@pytest.fixture
def options(source, ids):
    def make(recipe: str = "w8a8", **changes) -> QuantizeOptions:
        chosen = {
            "calibration": ids(source.manifest.sizes["V"]),
            "sequences": ROWS,
            "tokens": TOKENS,
            "sensitivity": False,
        }
        return QuantizeOptions(recipe=recipe, **{**chosen, **changes})

    return make


@pytest.fixture(scope="module")
def quantized(bundle_of, family, ids, tmp_path_factory):
    """A bundle of each family, quantized with w8a8."""
    source = Bundle.open(bundle_of(family))
    before = hashes(source.path)
    folder = tmp_path_factory.mktemp("quantized") / "bundle"
    report = quantize(
        source,
        folder,
        QuantizeOptions(
            recipe="w8a8",
            calibration=ids(source.manifest.sizes["V"]),
            sequences=ROWS,
            tokens=TOKENS,
            sensitivity=False,
        ),
    )
    assert hashes(source.path) == before  # the float bundle is only read
    return folder, report


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def computed(folder: Path) -> dict[str, str]:
    """Hashes of what a quantization computes; not of the times and paths that it notes."""
    return {
        name: digest
        for name, digest in hashes(folder).items()
        if name.startswith(("onnx/", "calibration/", "parity/"))
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_quantized_bundle_is_smaller_verified_and_says_what_it_is(quantized, source):
    folder, report = quantized
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    assert manifest.verified and report.ok
    assert manifest.quantization["recipe"] == "w8a8"
    assert manifest.quantization["source_weights_sha256"] == source.manifest.weights.sha256
    assert manifest.weights.bytes < 0.5 * source.manifest.weights.bytes
    assert verify(bundle, save=False).ok
    held = json.loads((folder / "reports/quantize.json").read_text(encoding="utf-8"))
    assert held["bundle"] == str(folder) and held["recipe"]["name"] == "w8a8"
    for form in ("step", "prefill"):
        for entry in manifest.graphs[form].values():
            onnx.checker.check_model(str(folder / entry.path))
    assert leftovers(folder.parent) == ["bundle"]


def test_the_same_command_gives_the_same_bytes(quantized, source, options, tmp_path):
    quantize(source, tmp_path / "again", options())
    assert computed(tmp_path / "again") == computed(quantized[0])


class PowerOutError(RuntimeError):
    """The power went out."""


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_interrupted_run_goes_on_where_it_stopped(
    quantized, source, options, tmp_path, monkeypatch, layer
):
    save, saved = calibration.Work.save, []

    def breaking(self, name, arrays):
        if name == f"layer_{layer:03}" and not saved.count("broke"):
            saved.append("broke")
            raise PowerOutError
        saved.append(name)
        save(self, name, arrays)

    monkeypatch.setattr(calibration.Work, "save", breaking)
    with pytest.raises(PowerOutError):
        quantize(source, tmp_path / "out", options())
    assert not (tmp_path / "out").exists()
    names = [f"layer_{index:03}" for index in range(3)]
    assert saved == [*names[:layer], "broke"]
    quantize(source, tmp_path / "out", options())
    assert saved == [*names[:layer], "broke", *names[layer:]]  # each layer once
    assert computed(tmp_path / "out") == computed(quantized[0])
    assert leftovers(tmp_path) == ["out"]


def test_work_of_another_recipe_or_data_is_not_taken(source, options, tmp_path, monkeypatch):
    def stop(*arguments):
        raise PowerOutError

    monkeypatch.setattr(quantizer, "write_bundle", stop)
    with pytest.raises(PowerOutError):
        quantize(source, tmp_path / "out", options())
    work = tmp_path / ".out.quantize"
    marker = (work / "identity").read_text(encoding="utf-8")
    with pytest.raises(PowerOutError):
        quantize(source, tmp_path / "out", options(tokens=TOKENS - 8))
    assert (work / "identity").read_text(encoding="utf-8") != marker


def test_statistics_of_a_quantized_bundle_are_taken_again(
    quantized, source, options, tmp_path, monkeypatch
):
    def must_not_run(*arguments, **named):
        raise AssertionError("calibrated again")

    monkeypatch.setattr(quantizer, "collect", must_not_run)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        'description: x\nrules:\n  - tensors: ["backbone.layers.*.mixer.in_proj"]\n'
        "    weights: int8\n    activations: int8\n    clip: mse\n",
        encoding="utf-8",
    )
    again = options(str(recipe), calibration=str(quantized[0]), sequences=None, tokens=None)
    quantize(source, tmp_path / "out", again)
    rows = [
        np.load(folder / "calibration/rows.npz")["calibration_ids"]
        for folder in (quantized[0], tmp_path / "out")
    ]
    np.testing.assert_array_equal(*rows)


def test_statistics_are_those_of_numpy(quantized, bundle_of, family, tmp_path):
    folder, _ = quantized
    small = Small(bundle_of(family), tmp_path / "work")
    rows = np.load(folder / "calibration/rows.npz")["calibration_ids"]
    from test_stream import values_of

    statistics = Statistics.load(folder / "calibration/statistics.npz")
    assert statistics.tokens == rows.size
    plain = [name for name in statistics.values if "@" not in name]
    arrays = dict(zip(plain, values_of(small.bundle, rows, plain), strict=True))
    assert len(plain) >= 9 and len(plain) < len(statistics.values)
    for name, seen in statistics.values.items():
        value, _, turned = name.partition("@")
        array = arrays.get(value)
        if array is None:
            (array,) = values_of(small.bundle, rows, [value])
        array = array.astype(np.float64)
        if turned:
            size = int(turned)
            signs = [[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
            blocks = array.reshape(*array.shape[:-1], -1, size)
            array = (blocks @ np.array(signs) / np.sqrt(size)).reshape(array.shape)
        np.testing.assert_allclose(seen.channels, np.abs(array).max(axis=(0, 1)), rtol=1e-4)
        assert seen.histogram.total == array.size
        assert seen.histogram.minmax() == pytest.approx(np.abs(array).max(), rel=1e-4)
        width = seen.histogram.reach / 2048
        lower, upper = (
            np.percentile(np.abs(array), 99, method=method) for method in ("lower", "higher")
        )
        assert lower - width <= seen.histogram.percentile(99) <= upper + width


def test_a_quantized_bundle_is_not_quantized_again(quantized, tmp_path):
    with pytest.raises(SsmExportError) as error:
        quantize(Bundle.open(quantized[0]), tmp_path / "out")
    assert error.value.code == errors.ALREADY_QUANTIZED
    assert leftovers(tmp_path) == []


def test_an_output_that_exists_is_refused_before_any_work(quantized, source, options):
    before = hashes(quantized[0])
    with pytest.raises(SsmExportError):
        quantize(source, quantized[0], options())
    assert hashes(quantized[0]) == before


def test_more_loss_than_the_recipe_allows_is_refused(source, options, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "description: x\nlimit_bits: 1.0e-9\ncalibration: {sequences: 4, tokens: 32}\nrules:\n"
        '  - tensors: ["backbone.layers.*.mixer.in_proj"]\n    weights: int4\n    block: 16\n',
        encoding="utf-8",
    )
    text = tmp_path / "text.json"
    text.write_text(json.dumps(np.random.default_rng(1).integers(0, 97, 400).tolist()))
    before = hashes(source.path)
    out = tmp_path / "out"
    lost = quantize(source, out, options(str(recipe), calibration=str(text), verify=False))
    if not lost.ok:
        shutil.rmtree(out)
        with pytest.raises(SsmExportError) as error:
            quantize(source, out, options(str(recipe), calibration=str(text)))
        assert error.value.code == errors.QUALITY_LOST
        assert not out.exists()
    else:
        pytest.skip(f"{lost.lost_bits} bits were lost: this seed gained")
    assert hashes(source.path) == before


def test_nan_weights_are_refused_and_leave_nothing(source, options, tmp_path):
    folder = tmp_path / "nan"
    shutil.copytree(source.path, folder)
    bundle = Bundle.open(folder)
    weights = folder / bundle.manifest.weights.path
    tensor = next(
        t
        for t in onnx.load(bundle.graph_path("step"), load_external_data=False).graph.initializer
        if t.name.endswith("layers.1.mixer.out_proj.weight")
    )
    offset = next(int(e.value) for e in tensor.external_data if e.key == "offset")
    content = bytearray(weights.read_bytes())
    content[offset : offset + 4] = np.float32(np.nan).tobytes()
    weights.write_bytes(content)
    bundle.manifest.weights = bundle.entry(bundle.manifest.weights.path)
    bundle.save()
    # Activations show it in the layer after the weight.
    for recipe, place in (("w8a16", "layers.1.mixer.out_proj"), ("w8a8", "layers.2.mixer")):
        with pytest.raises(SsmExportError) as error:
            quantize(Bundle.open(folder), tmp_path / "out", options(recipe))
        assert error.value.code in (errors.NOT_FINITE, errors.BAD_CALIBRATION)
        assert place in str(error.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"recipe": "fp8", "target": "jetson-agx-orin"}, errors.UNSUPPORTED_SCHEME),
        ({"recipe": "nvfp4", "target": "rtx-ada"}, errors.UNSUPPORTED_SCHEME),
        ({"recipe": "w8a17"}, errors.BAD_OPTION),
        ({"state_dtype": "bf16"}, None),
        ({"state_dtype": "int3"}, None),
    ],
)
def test_what_cannot_be_is_refused_up_front(source, options, tmp_path, changes, code):
    with pytest.raises(SsmExportError) as error:
        quantize(source, tmp_path / "out", options(**changes))
    assert code is None or error.value.code == code
    assert error.value.fix
    assert leftovers(tmp_path) == []


def test_rows_of_a_quantized_bundle_are_not_counted_again(quantized, source, options, tmp_path):
    with pytest.raises(SsmExportError, match="as they are") as error:
        quantize(source, tmp_path / "out", options(calibration=str(quantized[0]), tokens=None))
    assert error.value.code == errors.BAD_OPTION and "--sequences" in error.value.fix


def test_quality_is_not_measured_on_calibration_rows(source, options, tmp_path):
    chosen = options()
    with pytest.raises(SsmExportError, match="calibrated with") as error:
        quantize(source, tmp_path / "out", options(evaluation=chosen.calibration))
    assert error.value.code == errors.BAD_CALIBRATION and "--evaluation" in error.value.fix
    assert leftovers(tmp_path) == []


def test_half_a_file_of_work_is_none(tmp_path):
    work = calibration.Work(tmp_path / "work", {"a": 1})
    work.save("layer_000", {"x": np.arange(1000)})
    assert np.array_equal(work.load("layer_000")["x"], np.arange(1000))
    file = tmp_path / "work" / "layer_000.npz"
    whole = file.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert work.load("layer_000") is None
        with pytest.raises(SsmExportError) as error:
            Statistics.load(file)
        assert error.value.code == errors.BAD_CALIBRATION


def test_a_rule_for_tensors_that_do_not_exist_is_refused(source, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        'description: x\nrules:\n  - tensors: ["backbone.layers.*.mixer.q_proj"]\n'
        "    weights: int8\n",
        encoding="utf-8",
    )
    with pytest.raises(SsmExportError) as error:
        prepare(source, QuantizeOptions(recipe=str(recipe)))
    assert error.value.code == errors.BAD_CONFIG_FILE and "q_proj" in str(error.value)


@pytest.mark.parametrize("kind", ["empty", "short", "vocabulary", "nan", "folder"])
def test_bad_calibration_is_refused_and_leaves_nothing(source, options, tmp_path, kind):
    data = tmp_path / "data"
    data.mkdir()
    path = data / "ids.npy"
    content = {
        "empty": np.zeros(0, np.int64),
        "short": np.zeros(3, np.int64),
        "vocabulary": np.full(2000, 97),
        "nan": np.full(2000, np.nan),
        "folder": np.zeros(1, np.int64),
    }[kind]
    np.save(path, content)
    where = data if kind == "folder" else path
    with pytest.raises(SsmExportError) as error:
        quantize(source, tmp_path / "out", options(calibration=str(where)))
    assert error.value.code == errors.BAD_CALIBRATION
    assert error.value.fix and leftovers(tmp_path) == ["data"]


@pytest.mark.parametrize("recipe", ["w4a16", "w8a8"])
def test_fp16_bundles_pass_their_gates(bundle_of, family, ids, tmp_path, recipe):
    source = Bundle.open(bundle_of(family, precision="fp16"))
    chosen = QuantizeOptions(
        recipe=recipe,
        calibration=ids(source.manifest.sizes["V"]),
        sequences=ROWS,
        tokens=TOKENS,
        sensitivity=False,
    )
    report = quantize(source, tmp_path / "out", chosen)
    assert report.ok and Bundle.open(tmp_path / "out").manifest.verified
