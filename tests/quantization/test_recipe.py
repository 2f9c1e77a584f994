"""Recipes: the ones that come along, what a user's file may hold, and which rule decides."""

from __future__ import annotations

import dataclasses
import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_export import api, errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.recipe import Calibration, Recipe, Rule, match, read_recipe
from ssm_export.quantization.recipe import recipe_names as names_of_recipes

PROMISES = {"w8a16": 0.005, "w8a8": 0.03, "w4a16": 0.05, "fp8": 0.02}
"""Bits per byte that each recipe may lose."""
PARTS = {
    "mamba": ("in_proj", "out_proj", "x_proj", "dt_proj", "scan.x", "scan.B", "scan.C"),
    "mamba2": ("in_proj", "out_proj", "scan.x", "scan.B", "scan.C"),
}


def sites(family: str, layers: int = 2, tied: bool = True) -> list[str]:
    vocabulary = ["backbone.embeddings"] if tied else ["backbone.embeddings", "lm_head"]
    return [
        f"backbone.layers.{i}.mixer.{part}" for i in range(layers) for part in PARTS[family]
    ] + vocabulary


@pytest.mark.parametrize("family", PARTS)
@pytest.mark.parametrize("name", names_of_recipes())
def test_every_weight_of_both_families_has_a_rule_in_every_recipe(name: str, family: str) -> None:
    for tied in (True, False):
        decided = match(read_recipe(name), sites(family, tied=tied), family)
        weights = [site for site in sites(family, tied=tied) if ".scan." not in site]
        assert [site for site in weights if site not in decided] == []
        assert all(decided[site].weights != "float" for site in weights)


@pytest.mark.parametrize("family", PARTS)
def test_dt_keeps_a_floating_input_and_vocabularies_have_eight_bits(family: str) -> None:
    for name in names_of_recipes():
        decided = match(read_recipe(name), sites(family), family)
        if family == "mamba":
            dt = decided["backbone.layers.1.mixer.dt_proj"]
            assert (dt.weights in ("int8", "fp8"), dt.activations) == (True, "float")
        small = name == "w4a16-small"
        assert decided["backbone.embeddings"].weights == ("int4" if small else "int8")


def test_recipes_promise_what_they_have_to() -> None:
    said = {name: read_recipe(name).limit_bits for name in PROMISES}
    assert said == PROMISES
    assert read_recipe("w8a8-plain").limit_bits is None


def test_w8a8_is_made_for_scans_and_its_baseline_is_not() -> None:
    for family in PARTS:
        ours = match(read_recipe("w8a8"), sites(family), family)
        plain = match(read_recipe("w8a8-plain"), sites(family), family)
        layer = "backbone.layers.0.mixer."
        assert list(ours) == list(plain) == sites(family)
        assert {site: (r.weights, r.activations) for site, r in ours.items()} == {
            site: (r.weights, r.activations) for site, r in plain.items()
        }
        assert ours[layer + "scan.x"].clip == "percentile"
        assert ours[layer + "out_proj"].rotate > 0
        assert (ours[layer + "scan.x"].grouping > (1, 1)) == (family == "mamba2")
        assert (ours[layer + "scan.B"].grouping == (1, 1)) == (family == "mamba2")
        for rule in plain.values():
            assert (rule.clip, rule.rotate, rule.grouping) == ("minmax", 0, (0, 0))
    mamba = match(read_recipe("w8a8"), sites("mamba"), "mamba")
    x_proj, x = mamba[layer + "x_proj"], mamba[layer + "scan.x"]
    assert (x_proj.clip, x_proj.percentile) == (x.clip, x.percentile)  # they read one tensor


GOOD = "description: mine\nrules:\n  - tensors: ['*_proj']\n    weights: int8\n"
INT4 = GOOD.replace("int8", "int4\n    block: 32")
MIXED = GOOD + "mixed:\n  candidates: [int4, int8]\n  size: 0.4\n"


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_good_file_of_ones_own(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    assert recipe == Recipe("mine", "mine", (Rule(("*_proj",), weights="int8"),))
    assert read_recipe(str(tmp_path / "mine.yaml")) == recipe
    assert json.loads(json.dumps(recipe.as_json()))["rules"][0]["weights"] == "int8"


RULES = st.one_of(
    st.builds(
        Rule,
        tensors=st.lists(st.sampled_from(["*", "lm_head", "a.*.b"]), min_size=1).map(tuple),
        weights=st.just("int4"),
        block=st.sampled_from([16, 32, 64, 128, 256]),
        weight_clip=st.sampled_from(["minmax", "mse"]),
        rounding=st.sampled_from(["nearest", "gptq"]),
        rotate=st.sampled_from([0, 2, 64, 128]),
    ),
    st.builds(
        Rule,
        tensors=st.just(("*.x",)),
        weights=st.sampled_from(["float", "int8"]),
        activations=st.just("int8"),
        clip=st.just("percentile"),
        percentile=st.floats(50.01, 100),
        grouping=st.sampled_from([(0, 0), (1, 1), (4, 2)]),
        families=st.sampled_from([(), ("mamba",), ("mamba", "mamba2")]),
    ),
)


@settings(max_examples=40, deadline=None)
@given(
    rules=st.lists(RULES, min_size=1, max_size=4),
    state=st.sampled_from(["keep", "fp32", "fp16", "int8"]),
    calibration=st.builds(Calibration, st.integers(1, 999), st.integers(2, 999)),
    limit=st.floats(0.001, 1),
)
def test_a_written_recipe_is_read_as_it_was(tmp_path_factory, rules, state, calibration, limit):
    recipe = Recipe("mine", "x", tuple(rules), state, calibration, None, limit)
    document = recipe.as_json()
    document = {k: v for k, v in document.items() if k not in ("name", "mixed")}
    defaults = {field.name: field.default for field in dataclasses.fields(Rule)}
    document["rules"] = [
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in rule.items()
            if value != defaults[key]
        }
        for rule in document["rules"]
    ]
    file = write(tmp_path_factory.mktemp("recipe"), yaml.safe_dump(document))
    assert read_recipe(file) == recipe


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("", "holds no keys", 1),
        ("[1, 2]", "holds no keys", 1),
        ("a: [", "cannot be read", None),
        (GOOD.replace("description: mine\n", ""), "lacks 'description'", 1),
        ("description: x\n", "lacks 'rules'", 1),
        ("description: x\nrules: []\n", "not a list of rules", 2),
        ("description: x\nrules: [3]\n", "rule 1 holds no keys", 2),
        (GOOD.replace("mine", "[1]"), "'description', which is", 1),
        (GOOD + "stat: fp16\n", "unknown key 'stat'.*did you mean 'state'", 5),
        (GOOD + "state: bf16\n", "'state', which is 'bf16'.*known are keep.*drifts by", 5),
        (GOOD + "description: y\n", "'description' twice", 5),
        (GOOD + "limit_bits: -1\n", "'limit_bits', which is -1", 5),
        (GOOD + "limit_bits: .nan\n", "'limit_bits', which is nan", 5),
        (GOOD + "calibration: {sequences: 0}\n", "'sequences', which is 0", 5),
        (GOOD + "calibration: {sequences: 2.5}\n", "'sequences', which is 2.5", 5),
        (GOOD + "calibration: {token: 5}\n", "did you mean 'tokens'", 5),
        (GOOD.replace("    weights", "    weigths"), "rule 1.*did you mean 'weights'", 4),
        (GOOD.replace("int8", "int9"), "rule 1 has 'weights'.*did you mean 'int", 4),
        (GOOD.replace("['*_proj']", "[]"), "'tensors', which is", 3),
        (GOOD.replace("['*_proj']", "[3]"), "'tensors', which is 3", 3),
        (GOOD.replace("  - tensors: ['*_proj']\n    w", "  - w"), "lacks 'tensors'", 3),
        (GOOD.replace("int8", "int4"), "int4 weights and no 'block'", 3),
        (INT4.replace("32", "48"), "'block', which is 48", 5),
        (INT4.replace("32", "true"), "'block', which is True", 5),
        (GOOD + "    block: 32\n", "'block: 32', which is only for 'weights: int4'", 3),
        (GOOD + "    rotate: 48\n", "'rotate', which is 48, not 0 or a power", 5),
        (GOOD + "    rotate: 1\n", "'rotate', which is 1, not 0 or a power", 5),
        (GOOD.replace("int8", "fp8") + "    rounding: gptq\n", "only for weights of int8", 3),
        (GOOD + "    clip: mse\n", "'clip: mse', which is only for activations", 3),
        (GOOD + "    percentile: 99.9\n", "only for 'clip: percentile'", 3),
        (GOOD + "    percentile: 0.999\n", "not above 50", 5),
        (GOOD + "    grouping: [2, 2]\n", r"grouping: \[2, 2\]', which is only for activ", 3),
        (GOOD + "    grouping: [2, 0]\n", "'grouping', which is", 5),
        (GOOD + "    grouping: 2\n", "'grouping', which is 2", 5),
        (GOOD + "    families: [mambo]\n", "did you mean 'mamba'", 5),
        (INT4 + "    activations: int8\n", "int4 weights and int8 activations", 3),
        (GOOD + "    activations: nvfp4\n", "only weights can have it", 5),
        (GOOD + "    activations: fp8\n", "int8 weights and fp8 activations", 3),
        (GOOD.replace("weights", "rotate").replace("int8", "8"), "only for weights or", 3),
        (MIXED.replace("[int4, int8]", "[int8]"), "two or more formats", 6),
        (MIXED.replace("[int4, int8]", "[int8, int4]"), "cheap to dear.*int4, int8", 6),
        (MIXED.replace("[int4, int8]", "[int4, fp8]"), "nothing to choose for", 6),
        (MIXED.replace("  size: 0.4\n", ""), "one of 'size' and 'kl'", 6),
        (MIXED + "  kl: 0.1\n", "one of 'size' and 'kl'", 6),
        (MIXED.replace("0.4", "1.4"), "'size', which is 1.4", 7),
        (MIXED.replace("mixed", "    activations: int8\nmixed"), "int4 weights and int8 act", 7),
        ("description: !!python/object:os.system x\nrules: [1]\n", "no plain value", 1),
    ],
)
def test_a_file_that_cannot_be_used_names_line_rule_and_key(tmp_path, text, said, line):
    file = write(tmp_path, text)
    with pytest.raises(SsmExportError, match=said) as caught:
        read_recipe(file)
    assert caught.value.code == errors.BAD_CONFIG_FILE
    assert caught.value.where == (f"{file}, line {line}" if line else str(file))
    assert caught.value.fix


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SsmExportError, match="cannot be read") as caught:
        read_recipe(file)
    assert caught.value.code == errors.BAD_CONFIG_FILE


@pytest.mark.parametrize(
    ("name", "near"), [("w8a9", "w8a8"), ("W4A16", "w4a16"), ("mixt", "mixed"), ("fp-8", "fp8")]
)
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(SsmExportError, match=f"did you mean '{near}'") as caught:
        read_recipe(name)
    assert caught.value.code == errors.BAD_OPTION


@pytest.mark.parametrize("name", ["nowhere.yaml", "configs/w8a8", Path("w8a8")])
def test_a_path_that_is_none(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SsmExportError, match="no recipe file") as caught:
        read_recipe(name)
    assert caught.value.code == errors.NO_SUCH_PATH


def test_the_first_rule_decides_and_a_rule_of_floats_keeps_sites_out() -> None:
    recipe = Recipe(
        "mine",
        "x",
        (
            Rule(("*.layers.0.*",)),
            Rule(("*.in_proj",), weights="int4", block=64),
            Rule(("*_proj", "lm_head"), weights="int8"),
        ),
    )
    decided = match(recipe, sites("mamba2"), "mamba2")
    assert {name: rule.weights for name, rule in decided.items()} == {
        "backbone.layers.1.mixer.in_proj": "int4",
        "backbone.layers.1.mixer.out_proj": "int8",
    }


@given(st.lists(st.sampled_from(["*", "*_proj", "*.1.*", "*in_proj", "*.scan.?"]), min_size=1))
def test_match_is_a_search_for_the_first_pattern(patterns: list[str]) -> None:
    rules = [Rule((p,), activations="int8", rotate=2 << i) for i, p in enumerate(patterns)]
    decided = match(Recipe("mine", "x", tuple(rules)), sites("mamba"), "mamba")
    for site in sites("mamba"):
        first = next((r for r in rules if fnmatchcase(site, r.tensors[0])), None)
        assert decided.get(site) == first


def test_a_rule_that_names_no_tensor_of_its_family() -> None:
    recipe = Recipe("mine", "x", (Rule(("*.mixer.in_porj",), weights="int8"),))
    with pytest.raises(SsmExportError, match="names tensors that do not exist") as caught:
        match(recipe, sites("mamba2"), "mamba2")
    assert caught.value.code == errors.BAD_CONFIG_FILE
    assert caught.value.where == "recipe mine, rule 1"
    assert "did you mean backbone.layers.*.mixer.in_proj?" in caught.value.fix
    other = dataclasses.replace(recipe.rules[0], families=("mamba",))
    kept = Recipe("mine", "x", (other, Rule(("*",), weights="int8")))
    assert match(kept, ["lm_head"], "mamba2") == {"lm_head": kept.rules[1]}


@pytest.mark.parametrize("family", PARTS)
def test_one_pattern_of_several_may_not_be_misspelt(family: str) -> None:
    good, bad = "backbone.layers.*.mixer.out_proj", "backbone.layers.*.mixer.in_prj"
    recipe = Recipe("mine", "x", (Rule((good, bad), weights="int8"),))
    with pytest.raises(SsmExportError, match="in_prj") as caught:
        match(recipe, sites(family), family)
    assert good not in caught.value.what
    elsewhere = ("backbone.layers.*.mixer.x_proj", "*.dt_proj", "lm_head")
    for name in elsewhere:  # other models have them
        match(Recipe("mine", "x", (Rule((good, name), weights="int8"),)), sites(family), family)


@pytest.mark.parametrize("tensor", ["A_log", "dt_bias", "conv1d", "D", "scan.dt", "norm"])
def test_what_has_to_stay_floating_cannot_be_named(tensor: str) -> None:
    recipe = Recipe("mine", "x", (Rule((f"backbone.layers.*.mixer.{tensor}",), weights="int8"),))
    with pytest.raises(SsmExportError, match="do not exist"):
        match(recipe, sites("mamba2"), "mamba2")


def test_another_format_brings_its_own_block() -> None:
    rule = Rule(("*",), weights="int4", block=64, weight_clip="mse", rounding="gptq")
    assert rule.with_weights("int4") == rule
    assert rule.with_weights("int8") == dataclasses.replace(rule, weights="int8", block=0)
    assert rule.with_weights("int8").with_weights("int4").block == 128
    assert rule.with_weights("nvfp4").weight_block == 16  # NVFP4 is defined on blocks of 16
    assert rule.with_weights("mxfp8").weight_block == 32  # OCP Microscaling formats, table 1
    assert rule.with_weights("float").rounding == "nearest"


def test_list_recipes() -> None:
    items = {item["name"]: item for item in api.list_items("recipes")}
    assert set(PROMISES) | {"nvfp4", "mxfp8", "mixed"} <= set(items)
    assert items["fp8"]["formats"] == ["fp8", "int8"]
    assert "jetson-agx-orin" in items["w8a8"]["targets"]
    assert "jetson-agx-orin" not in items["fp8"]["targets"]
    assert items["w4a16"]["rules"][0]["block"] == 128
    assert json.loads(json.dumps(items)).keys() == items.keys()
