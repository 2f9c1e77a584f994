"""A quantized bundle whose formats a target lacks is refused before the parser is reached."""

from __future__ import annotations

import pytest

from ssm_export import errors
from ssm_export.device_formats import INSTEAD, RECIPE_FORMATS, formats
from ssm_export.engines import tensorrt
from ssm_export.engines.tensorrt import build, trtexec_commands
from ssm_export.errors import SsmExportError
from ssm_export.quantization.recipe import read_recipe
from ssm_export.targets import all_targets, get_target

LINEAR = "backbone.layers.0.mixer.in_proj"


def quantize(toy, scheme, block=0, inputs="float"):
    """Make the manifest that of a quantized bundle; its graphs are not looked at."""
    toy.bundle.manifest.quantization = {
        "recipe": "mine",
        "weights": {LINEAR: {"site": LINEAR, "scheme": scheme, "block": block}},
        "activations": {LINEAR: {"scheme": inputs, "rotate": 0, "scale": 1.0, "scales": 1}},
    }
    toy.bundle.save()


@pytest.fixture
def no_parser(monkeypatch):
    monkeypatch.setattr(tensorrt, "require_packages", lambda kind: None)
    monkeypatch.setattr(tensorrt, "installed_version", lambda name: "1.7")
    monkeypatch.setattr(tensorrt, "sources", lambda *_: pytest.fail("a graph was read"))
    monkeypatch.setattr(
        tensorrt, "build_in_child", lambda *_: pytest.fail("the parser was reached")
    )


@pytest.mark.parametrize(
    ("target", "scheme", "block", "inputs", "said", "instead"),
    [
        ("rtx-any", "fp8", 0, "fp8", "fp8 needs compute capability 8.9", "w8a8"),
        ("rtx-any", "int8", 0, "fp8", "fp8 needs compute capability 8.9", "w8a8"),
        ("rtx-ampere", "fp8", 0, "float", "fp8 needs compute capability 8.9", "w8a8"),
        ("rtx-any", "nvfp4", 16, "float", "nvfp4 needs compute capability 10.0", "w4a16"),
        ("rtx-ada", "nvfp4", 16, "float", "nvfp4 needs compute capability 10.0", "w4a16"),
        ("rtx-ada", "mxfp8", 32, "float", "mxfp8 needs compute capability 10.0", "fp8"),
        ("jetson-agx-orin", "fp8", 0, "fp8", "its GPU has 8.7", "w8a8"),
        ("jetson-agx-orin", "int4", 32, "float", "blocks of int4 weights are 64 and 128", "w4a16"),
    ],
)
def test_formats_that_a_target_lacks(toy, no_parser, target, scheme, block, inputs, said, instead):
    quantize(toy, scheme, block, inputs)
    for work in (build, trtexec_commands):
        with pytest.raises(SsmExportError, match=said) as caught:
            work(toy.bundle, target)
        assert caught.value.code is errors.UNSUPPORTED_SCHEME
        assert f"--recipe {instead} --target {target}" in caught.value.fix
        assert str(toy.bundle.path) == caught.value.where
    assert not (toy.bundle.path / "engines").exists()


@pytest.mark.parametrize(
    ("target", "scheme", "block"),
    [
        ("rtx-any", "int8", 0),
        ("rtx-any", "int4", 32),
        ("rtx-ada", "fp8", 0),
        ("rtx-blackwell", "nvfp4", 16),
        ("rtx-blackwell", "mxfp8", 32),
        ("jetson-agx-orin", "int4", 64),
        ("jetson-thor", "nvfp4", 16),
    ],
)
def test_formats_that_it_has(toy, target, scheme, block):
    quantize(toy, scheme, block)
    assert set(trtexec_commands(toy.bundle, target)) == {"step", "prefill"}


def test_a_format_of_a_later_release_is_left_to_the_parser(toy):
    quantize(toy, "int2")
    assert trtexec_commands(toy.bundle, "rtx-any")


def test_what_is_proposed_instead_has_the_formats_that_the_table_says():
    proposed = {name for names in INSTEAD.values() for name in names}
    assert proposed == set(RECIPE_FORMATS)
    for name in proposed:
        assert read_recipe(name).schemes == RECIPE_FORMATS[name]


def test_every_target_has_int8_and_four_bits_need_ampere():
    assert all("int8" in formats(target) for target in all_targets())
    assert "int4" in formats(get_target("jetson-orin-nano"))
    assert "fp8" not in formats(get_target("a100"))
    assert {"fp8", "mxfp8", "nvfp4"} <= set(formats(get_target("b200")))
