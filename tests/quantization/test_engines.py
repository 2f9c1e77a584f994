"""Every recipe of both families through TensorRT-RTX's builder, which needs no GPU.

The bundles are written as quantize writes them; what quantize measures is left out, because the
builder does not ask for it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, save_tiny

from ssm_export.bundle import Bundle, new_bundle
from ssm_export.engines.tensorrt import build
from ssm_export.progress import SILENT
from ssm_export.quantization import quantizer, writer
from ssm_export.quantization.corpus import Corpus
from ssm_export.quantization.data import Rows
from ssm_export.quantization.preview import planned
from ssm_export.quantization.quantizer import QuantizeOptions, prepare
from ssm_export.quantization.recipe import read_recipe, recipe_names
from ssm_export.quantization.support import can_run
from ssm_export.targets import get_target

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)

WIDE = {
    "mamba": {"hidden_size": 512, "time_step_rank": 32},
    "mamba2": {"hidden_size": 512, "num_heads": 16, "head_dim": 64},
}
"""One layer, wide enough that weights outweigh code."""
VOCABULARY = 6144
MORE_CODE = 1_500_000
"""Bytes of code that an engine of quantized weights may have over the float engine's: kernels that
unpack or round, 0.1 to 1.2 MB with TensorRT-RTX 1.7. A vocabulary that is in the engine twice
(3.1 MB in int8), or one that stayed fp16 (3.1 MB more), is beyond it."""
RARE = ("mixed", "w4a16-small", "w8a8-plain")
"""Recipes whose tensors have the forms of others."""
SIZES = {"max_batch": 2, "max_chunk": 64, "opt_chunk": 16}


@pytest.fixture(scope="session")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """``wide_bundle(family)``: a float bundle in fp16, exported once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Bundle:
        from ssm_export.exporter import ExportOptions, export

        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            shape = {"num_hidden_layers": 1, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
            save_tiny(family, folder / "checkpoint", **shape, **WIDE[family])
            made[family] = folder / "bundle"
            options = ExportOptions(
                precision="fp16", parity="quick", lowering="native", verify=False
            )
            export(folder / "checkpoint", made[family], options)
        return Bundle.open(made[family])

    return make


@pytest.fixture(scope="session")
def float_engines(
    wide_bundle: Callable[[str], Bundle],
) -> Callable[[str], tuple[int, dict[str, int]]]:
    """``float_engines(family)``: bytes of the fp16 weights file, and of both fp16 engines."""
    made: dict[str, tuple[int, dict[str, int]]] = {}

    def make(family: str) -> tuple[int, dict[str, int]]:
        if family not in made:
            bundle = wide_bundle(family)
            made[family] = bundle.manifest.weights.bytes, sizes_of(build(bundle, **SIZES))
        return made[family]

    return make


@pytest.fixture
def quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundle]:
    """``quantized(bundle, recipe)``: the files of a quantized bundle."""
    monkeypatch.setattr(writer, "_record_simulation", lambda *_: None)  # for verify

    def make(source: Bundle, recipe: str, **options: Any) -> Bundle:
        output = tmp_path / "quantized"
        job = prepare(source, QuantizeOptions(recipe=recipe, **options))
        vocabulary = source.manifest.sizes["V"]
        ids = np.random.default_rng(5).integers(0, vocabulary, (2, 32))
        rows = Rows.of(ids, "random ids")
        settled = quantizer.Deciding(job, Corpus(rows, rows), output, SILENT).settle()
        with new_bundle(output) as folder:
            writer.write_bundle(folder, job, settled.plan, settled.tensors, SILENT)
        return Bundle.open(output)

    return make


def sizes_of(report: Any) -> dict[str, int]:
    return {entry.form: entry.file.bytes for entry in report}


def target_of(recipe: str) -> str:
    """The most general target of TensorRT-RTX that runs a recipe."""
    known = ("rtx-any", "rtx-ada", "rtx-blackwell")
    return next(name for name in known if can_run(read_recipe(recipe), get_target(name)))


def test_each_format_has_a_target() -> None:
    """What the refusals are for: 8-bit floats from Ada on, block formats from Blackwell on."""
    assert {name: target_of(name) for name in ("w8a8", "w4a16", "fp8", "mxfp8", "nvfp4")} == {
        "w8a8": "rtx-any",
        "w4a16": "rtx-any",
        "fp8": "rtx-ada",
        "mxfp8": "rtx-blackwell",
        "nvfp4": "rtx-blackwell",
    }


def every_recipe() -> list[Any]:
    """Recipe and family; what takes the place of another in the fast tests is slow."""
    cases = []
    for at, recipe in enumerate(recipe_names()):
        for number, family in enumerate(FAMILIES):
            slow = recipe in RARE or (at + number) % 2
            marks = [pytest.mark.slow] if slow else []
            cases.append(pytest.param(recipe, family, marks=marks, id=f"{recipe}-{family}"))
    return cases


@pytest.mark.parametrize(("recipe", "family"), every_recipe())
def test_a_recipe_builds_and_the_engines_follow_the_weights(
    recipe: str,
    family: str,
    quantized: Callable[..., Bundle],
    wide_bundle: Callable[[str], Bundle],
    float_engines: Callable[[str], tuple[int, dict[str, int]]],
) -> None:
    """An engine is its weights and its code. The float engines tell how much code there is, so
    what is left of a quantized engine is as large as the quantized weights."""
    float_weights, float_sizes = float_engines(family)
    bundle = quantized(wide_bundle(family), recipe)
    report = build(bundle, target_of(recipe), **SIZES)
    weights = Bundle.open(bundle.path).manifest.weights.bytes
    assert weights < 0.55 * float_weights
    predicted = planned(prepare(wide_bundle(family), QuantizeOptions(recipe)), SILENT).weights_after
    assert predicted is not None
    assert 0.97 * weights < predicted < (1.4 if recipe == "mixed" else 1.03) * weights
    for form, size in sizes_of(report).items():
        code = float_sizes[form] - float_weights
        assert 0 < size - weights < code + MORE_CODE, form
    assert set(report.warnings.values()) == {()}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_builds(
    family: str, bundle_of: Callable[..., Path], quantized: Callable[..., Bundle]
) -> None:
    """Quantized inputs in fp32: scales and rotation in another type."""
    report = build(quantized(Bundle.open(bundle_of(family)), "w8a8"), **SIZES)
    assert set(sizes_of(report)) == {"step", "prefill"}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "state"), [("mamba", "fp16"), ("mamba2", "int8")])
def test_narrow_states_build(
    family: str,
    state: str,
    wide_bundle: Callable[[str], Bundle],
    quantized: Callable[..., Bundle],
) -> None:
    """The build compares the engine's states with the manifest's, name by name and type by type."""
    bundle = quantized(wide_bundle(family), "w8a16", state_dtype=state)
    kinds = {s.dtype for s in bundle.manifest.states if s.kind == "ssm"}
    assert kinds == {{"fp16": "float16", "int8": "int8"}[state]}
    assert len(build(bundle, **SIZES)) == 2
