"""Which recipes a target runs, and what is said of those that it does not."""

from __future__ import annotations

import dataclasses

import pytest

from ssm_export import errors
from ssm_export.device_formats import formats
from ssm_export.errors import SsmExportError
from ssm_export.quantization.recipe import Mixed, Recipe, Rule, read_recipe, recipe_names
from ssm_export.quantization.support import allowed_blocks, can_run, check_target
from ssm_export.targets import all_targets, get_target

# By NVIDIA's support matrices: int8 everywhere here, FP8 from compute capability 8.9 on, the
# formats with block scales on Blackwell (10.0 and later).
EIGHT_BITS = {"int8", "int4"}
FORMATS = {
    "a100": EIGHT_BITS,
    "b200": EIGHT_BITS | {"fp8", "mxfp8", "nvfp4"},
    "dgx-spark": EIGHT_BITS | {"fp8", "mxfp8", "nvfp4"},
    "h100": EIGHT_BITS | {"fp8"},
    "h200": EIGHT_BITS | {"fp8"},
    "jetson-agx-orin": EIGHT_BITS,
    "jetson-agx-orin-32gb": EIGHT_BITS,
    "jetson-orin-nano": EIGHT_BITS,
    "jetson-orin-nano-super": EIGHT_BITS,
    "jetson-orin-nx-16gb": EIGHT_BITS,
    "jetson-orin-nx-8gb": EIGHT_BITS,
    "jetson-thor": EIGHT_BITS | {"fp8", "mxfp8", "nvfp4"},
    "l4": EIGHT_BITS | {"fp8"},
    "rtx-3090": EIGHT_BITS,
    "rtx-4090": EIGHT_BITS | {"fp8"},
    "rtx-5090": EIGHT_BITS | {"fp8", "mxfp8", "nvfp4"},
    "rtx-ada": EIGHT_BITS | {"fp8"},
    "rtx-ampere": EIGHT_BITS,
    "rtx-any": EIGHT_BITS,
    "rtx-blackwell": EIGHT_BITS | {"fp8", "mxfp8", "nvfp4"},
}


def test_every_target_has_the_formats_of_its_gpu() -> None:
    assert {target.name: set(formats(target)) for target in all_targets()} == FORMATS


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_recipe_runs_where_its_formats_are(recipe: str) -> None:
    known = read_recipe(recipe)
    for target in all_targets():
        runs = set(known.schemes) <= FORMATS[target.name]
        assert can_run(known, target) == runs
        if runs:
            check_target(known, target)
        else:
            with pytest.raises(SsmExportError) as caught:
                check_target(known, target)
            assert caught.value.code == errors.UNSUPPORTED_SCHEME
            named = caught.value.fix.removeprefix("--recipe ").split(" ")[0]
            check_target(read_recipe(named), target)  # what is offered works there


@pytest.mark.parametrize(
    ("recipe", "target", "why", "instead"),
    [
        ("fp8", "jetson-agx-orin", "needs compute capability 8.9 .Ada., its GPU has 8.7", "w8a8"),
        ("nvfp4", "rtx-ada", "10.0 .Blackwell., its GPU has 8.9", "w4a16"),
        ("mxfp8", "rtx-ada", "10.0 .Blackwell., its GPU has 8.9", "fp8"),
        ("mxfp8", "jetson-orin-nano", "its GPU has 8.7", "w8a8"),
        ("fp8", "rtx-any", "stands for every GPU from 8.0 on", "w8a8"),
    ],
)
def test_a_refusal_says_why_and_what_to_take(recipe, target, why, instead) -> None:
    with pytest.raises(SsmExportError, match=why) as caught:
        check_target(read_recipe(recipe), get_target(target))
    assert caught.value.fix.startswith(f"--recipe {instead} ")
    assert caught.value.where == "rule 1"
    assert caught.value.code.exit_status == 2


def int4(block: int) -> Recipe:
    return Recipe("mine", "x", (Rule(("*",), weights="int4", block=block),))


@pytest.mark.parametrize("block", [16, 32, 256])
def test_blocks_that_tensorrt_on_a_jetson_refuses(block: int) -> None:
    with pytest.raises(SsmExportError, match=f"blocks of {block}.*tensorrt on jetson") as caught:
        check_target(int4(block), get_target("jetson-orin-nano"))
    assert caught.value.code == errors.UNSUPPORTED_SCHEME
    assert caught.value.fix.startswith("block: 64 or 128 in that rule; or --recipe w4a16 ")
    check_target(int4(block), get_target("rtx-ampere"))
    with pytest.raises(SsmExportError, match="tensorrt on rtx-ampere"):
        check_target(int4(block), get_target("rtx-ampere"), "tensorrt")


def test_blocks_of_every_engine() -> None:
    assert allowed_blocks(get_target("jetson-agx-orin")) == (64, 128)
    assert allowed_blocks(get_target("rtx-ada"), "tensorrt") == (64, 128)
    assert allowed_blocks(get_target("rtx-ada")) == allowed_blocks(None) == (16, 32, 64, 128, 256)
    for block in (64, 128):
        check_target(int4(block), get_target("jetson-agx-orin"))


@pytest.mark.parametrize(
    ("scheme", "version", "runs"),
    [
        ("nvfp4", "10.7", False),
        ("nvfp4", "10.8", True),
        ("mxfp8", "10.8", False),
        ("mxfp8", "10.12.0.36", True),
        ("mxfp8", "11", True),
        ("int4", "9.3", False),
        ("fp8", "9.0", True),
    ],
)
def test_a_tensorrt_that_is_older_than_the_format(scheme, version, runs) -> None:
    thor = dataclasses.replace(get_target("jetson-thor"), tensorrt=version)
    recipe = Recipe("mine", "x", (Rule(("*",), weights=scheme, block=64 * (scheme == "int4")),))
    assert can_run(recipe, thor) == runs
    if not runs:
        with pytest.raises(SsmExportError, match=f"{scheme} needs TensorRT .*, it has {version}"):
            check_target(recipe, thor)


def test_what_mixed_may_choose_counts_too() -> None:
    recipe = Recipe(
        "mine", "x", (Rule(("*",), weights="int8"),), mixed=Mixed(("fp8", "int8"), size=0.5)
    )
    with pytest.raises(SsmExportError, match="fp8 tensors") as caught:
        check_target(recipe, get_target("jetson-agx-orin"))
    assert caught.value.where == "'mixed'"


def test_an_engine_kind_that_does_not_build_for_the_target() -> None:
    with pytest.raises(SsmExportError, match="tensorrt-rtx does not build for h100") as caught:
        check_target(int4(64), get_target("h100"), "tensorrt-rtx")
    assert caught.value.code == errors.BAD_OPTION
