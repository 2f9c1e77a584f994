"""The target files, what is said of names that are none, and of files that cannot be used."""

import pytest

from ssm_export import errors, resources
from ssm_export.errors import SsmExportError
from ssm_export.resources import config_dir
from ssm_export.targets import all_targets, get_target, read_target, target_names

# Compute capabilities as NVIDIA lists them; bandwidths in GB/s of the boards' data sheets.
CAPABILITIES = {
    "a100": (8, 0),
    "b200": (10, 0),
    "h100": (9, 0),
    "jetson-agx-orin": (8, 7),
    "jetson-orin-nano": (8, 7),
    "jetson-orin-nano-super": (8, 7),
    "jetson-thor": (11, 0),
    "rtx-ada": (8, 9),
    "rtx-ampere": (8, 6),
    "rtx-any": None,
    "rtx-blackwell": (12, 0),
}
BANDWIDTHS = {
    "jetson-orin-nano": 68,
    "jetson-orin-nano-super": 102.4,
    "jetson-agx-orin": 204.8,
    "jetson-thor": 273,
}


def test_every_target_has_the_capability_of_its_gpu():
    assert {target.name: target.capability for target in all_targets()} == CAPABILITIES


def test_jetsons_have_their_bandwidth_and_say_how_far_to_trust_it():
    for name, bandwidth in BANDWIDTHS.items():
        target = get_target(name)
        assert target.bandwidth_gb_s == bandwidth
        assert "verify" in target.source
        assert target.engines == ("tensorrt",)
        assert target.platform == "linux-aarch64"


def test_targets_are_json():
    import json

    items = [target.as_json() for target in all_targets()]
    assert [item["name"] for item in json.loads(json.dumps(items))] == target_names()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("jetson-orin-agx", "jetson-agx-orin"),
        ("jetson_thor", "jetson-thor"),
        ("RTX-ADA", "rtx-ada"),
        ("orin-nano", "jetson-orin-nano"),
        ("rtxany", "rtx-any"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(SsmExportError, match=f"did you mean '{nearest}'") as caught:
        get_target(name)
    assert caught.value.code == errors.UNKNOWN_TARGET
    assert caught.value.code.exit_status == 2


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(SsmExportError, match="shows them all: a100, ") as caught:
        get_target("zzzzzz")
    assert "did you mean" not in str(caught.value)


GOOD = "description: d\ncompute_capability: '8.6'\nengines: [tensorrt]\nprecisions: [fp16]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "holds no keys"),
        ("a: [", "not YAML"),
        (GOOD.replace("[tensorrt]", "[openvino]"), "openvino"),
        (GOOD.replace("[tensorrt]", "[]"), "'engines'"),
        (GOOD.replace("[fp16]", "fp16"), "'precisions' is not a list"),
        (GOOD.replace("'8.6'", "8.6"), "in quotes"),
        (GOOD.replace("8.6", "new"), "invalid literal"),
        (GOOD.replace("8.6", "86.0"), "86.0"),
        (GOOD + "bandwith: 3\n", "bandwith"),
        (GOOD.replace("description: d\n", ""), "description"),
    ],
)
def test_a_file_that_cannot_be_used_names_what_is_wrong(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SsmExportError, match=said) as caught:
        read_target(file)
    assert caught.value.code == errors.BAD_CONFIG_FILE
    assert str(file) in str(caught.value)


def test_a_good_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD)
    assert read_target(file).capability == (8, 6)


def test_configs_are_found_where_a_wheel_puts_them(tmp_path, monkeypatch):
    inside = tmp_path / "site/ssm_export/configs"
    (inside / "targets").mkdir(parents=True)
    stray = tmp_path / "site/configs"
    stray.mkdir()
    monkeypatch.setattr(resources, "_CANDIDATES", (stray, inside))
    assert config_dir("targets") == inside / "targets"
    assert config_dir() == inside
    with pytest.raises(SsmExportError, match="configs/quantize") as caught:
        config_dir("quantize")
    assert caught.value.code == errors.BAD_CONFIG_FILE
