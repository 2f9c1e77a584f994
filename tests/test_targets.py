"""The target files, what is said of names that are none, and of files that cannot be used."""

import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ssm_export import errors, resources
from ssm_export.errors import SsmExportError
from ssm_export.resources import config_dir
from ssm_export.target_file import jetpack_releases
from ssm_export.targets import (
    OWN_TARGETS,
    all_targets,
    get_target,
    guess,
    read_target,
    target_names,
    this_machine,
)

# Compute capabilities as NVIDIA lists them on developer.nvidia.com/cuda-gpus.
CAPABILITIES = {
    "a100": (8, 0),
    "b200": (10, 0),
    "dgx-spark": (12, 1),
    "h100": (9, 0),
    "h200": (9, 0),
    "jetson-agx-orin": (8, 7),
    "jetson-agx-orin-32gb": (8, 7),
    "jetson-orin-nano": (8, 7),
    "jetson-orin-nano-super": (8, 7),
    "jetson-orin-nx-16gb": (8, 7),
    "jetson-orin-nx-8gb": (8, 7),
    "jetson-thor": (11, 0),
    "l4": (8, 9),
    "rtx-3090": (8, 6),
    "rtx-4090": (8, 9),
    "rtx-5090": (12, 0),
    "rtx-ada": (8, 9),
    "rtx-ampere": (8, 6),
    "rtx-any": None,
    "rtx-blackwell": (12, 0),
}
CLASSES = {"rtx-ada", "rtx-ampere", "rtx-any", "rtx-blackwell"}
# Memory clock in MHz and bus width in bits of each module and mode (nvpmodel's files, data sheets).
CLOCKS = {
    "jetson-agx-orin": {"MAXN": (3200, 256), "MODE_30W": (3200, 256), "MODE_15W": (2133, 256)},
    "jetson-agx-orin-32gb": {"MODE_40W": (3200, 256), "MODE_15W": (2133, 256)},
    "jetson-orin-nano": {"15W": (2133, 128), "7W": (2133, 128)},
    "jetson-orin-nano-super": {
        "MAXN_SUPER": (3200, 128),
        "25W": (3199, 128),
        "15W": (2133, 128),
    },
    "jetson-orin-nx-16gb": {"40W": (3200, 128), "15W": (3200, 128), "10W": (2133, 128)},
    "jetson-orin-nx-8gb": {"20W": (3200, 128), "10W": (2133, 128)},
}
# The limits of shared memory per block in the CUDA programming guide, KiB.
SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 110: 227, 120: 99, 121: 99}


def test_every_target_has_the_capability_of_its_gpu():
    assert {target.name: target.capability for target in all_targets()} == CAPABILITIES
    for target in all_targets():
        if target.capability is not None:
            major, minor = target.capability
            assert target.shared_memory_per_block_kb == SHARED[10 * major + minor]


@pytest.mark.parametrize("name", CLOCKS)
def test_the_bandwidth_of_a_mode_is_that_of_its_memory_clock(name):
    modes = {mode.name: mode for mode in get_target(name).power_modes}
    for mode, (clock, bits) in CLOCKS[name].items():
        # Two transfers in each cycle; data sheets round.
        expected = 2 * clock * 1e6 * bits / 8 / 1e9
        assert modes[mode].bandwidth_gb_s == pytest.approx(expected, rel=5e-3)
        digits = "".join(letter for letter in mode if letter.isdigit())
        assert modes[mode].watts == (float(digits) if digits else None)


def test_a_board_is_as_fast_as_its_fastest_mode():
    for target in all_targets():
        if target.power_modes:
            fastest = max(mode.bandwidth_gb_s for mode in target.power_modes)
            assert target.bandwidth_gb_s == fastest


@pytest.mark.parametrize(
    ("name", "release", "tensorrt", "python"),
    [
        ("jetson-agx-orin", "6.2", "10.3", "3.10"),
        ("jetson-orin-nano-super", "6.2", "10.3", "3.10"),
        ("jetson-thor", "7.0", "10.13", "3.12"),
        ("jetson-thor", "7.1", "10.13", "3.12"),
    ],
)
def test_software_of_the_boards_by_release(name, release, tensorrt, python):
    target = get_target(name)
    (found,) = (one for one in target.jetpack if one.release == release)
    assert (found.tensorrt, found.python) == (tensorrt, python)
    assert target.tensorrt == target.jetpack[0].tensorrt  # what runs on the oldest runs on all
    assert target.platform == "linux-aarch64"
    assert target.engines == ("tensorrt",)
    assert target.unified_memory


def test_releases_are_in_order_and_say_where_they_are_from():
    releases = jetpack_releases()
    assert list(releases) == sorted(releases, key=lambda text: tuple(map(int, text.split("."))))
    assert all(len(release.source) > 20 for release in releases.values())


def test_every_fact_has_a_source():
    for target in all_targets():
        said = {"description", "engines", "precisions", "platform"}
        set_keys = set(yaml.safe_load((config_dir("targets") / f"{target.name}.yaml").read_text()))
        missing = set_keys - said - {"sources", "unified_memory"} - set(target.sources)
        if target.name == "rtx-any":
            missing.discard("compute_capability")  # it stands for many
        assert missing == set(), target.name


def test_a_whole_device_has_what_a_prediction_needs():
    for target in all_targets():
        known = (target.memory_gb, target.bandwidth_gb_s, target.available_bytes)
        assert all(known) == (target.name not in CLASSES)
        if target.jetpack:
            assert target.unified_memory and target.reserve_gb > 1


def test_targets_are_json():
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
        ("orin-nx-8gb", "jetson-orin-nx-8gb"),
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
    assert OWN_TARGETS in str(caught.value)


ORIN_16 = 16_500_000_000  # what a system sees of 16 GiB
# /proc/device-tree/compatible in its parts, /proc/device-tree/model, name of the GPU; memory in
# bytes, and the capability where a driver said it.
RECORDED = [
    (("p3768-0000", "p3767-0005-super", "p3767-0005", "tegra234"), 7_990_000_000, None,
     "jetson-orin-nano-super"),
    (("p3768-0000", "p3767-0005", "tegra234", "NVIDIA Jetson Orin Nano Developer Kit"),
     7_990_000_000, (8, 7), "jetson-orin-nano"),
    (("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "Orin"),
     7_990_000_000, (8, 7), "jetson-orin-nano-super"),
    (("p3509-0000", "p3767-0000", "tegra234"), ORIN_16, (8, 7), "jetson-orin-nx-16gb"),
    (("p3509-0000", "p3767-0001", "tegra234"), 7_990_000_000, (8, 7), "jetson-orin-nx-8gb"),
    (("NVIDIA Jetson Orin NX Engineering Reference Developer Kit",), ORIN_16, (8, 7),
     "jetson-orin-nx-16gb"),
    (("NVIDIA Jetson Orin NX Engineering Reference Developer Kit",), 7_990_000_000, (8, 7),
     "jetson-orin-nx-8gb"),
    (("p3737-0000", "p3701-0005", "tegra234"), 65_900_000_000, (8, 7), "jetson-agx-orin"),
    (("NVIDIA Jetson AGX Orin Developer Kit",), 65_900_000_000, (8, 7), "jetson-agx-orin"),
    (("NVIDIA Jetson AGX Orin Developer Kit",), 32_200_000_000, (8, 7), "jetson-agx-orin-32gb"),
    (("NVIDIA Jetson AGX Thor Developer Kit", "NVIDIA Thor"), 131_857_588_224, (11, 0),
     "jetson-thor"),
    (("p4071-0000", "p3834-0008", "tegra264"), 131_857_588_224, (11, 0), "jetson-thor"),
    (("NVIDIA A100-SXM4-80GB",), 85_198_045_184, (8, 0), "a100"),
    (("NVIDIA H100 80GB HBM3",), 85_031_714_816, (9, 0), "h100"),
    (("NVIDIA H200",), 150_754_820_096, (9, 0), "h200"),
    (("NVIDIA B200",), 191_502_155_776, (10, 0), "b200"),
    (("NVIDIA L4",), 23_665_770_496, (8, 9), "l4"),
    (("NVIDIA GB10",), 128_524_029_952, (12, 1), "dgx-spark"),
    (("NVIDIA GeForce RTX 3090",), 25_438_126_080, (8, 6), "rtx-3090"),
    (("nvidia geforce rtx 4090",), 25_757_220_864, (8, 9), "rtx-4090"),
    (("NVIDIA GeForce RTX 4060",), 8_585_740_288, (8, 9), "rtx-ada"),
    (("NVIDIA L40S",), 47_667_150_848, (8, 9), "rtx-ada"),
    (("NVIDIA GeForce RTX 5060 Ti",), 17_000_000_000, (12, 0), "rtx-blackwell"),
    (("NVIDIA H100 PCIe",), 85_031_714_816, (9, 0), None),
    (("NVIDIA A100-SXM4-40GB",), 42_500_000_000, (8, 0), None),
    (("Tesla T4",), 15_800_000_000, (7, 5), None),
    (("p3767-0004", "tegra234"), 3_900_000_000, None, None),
    ((), 33_000_000_000, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("names", "memory", "capability", "target"), RECORDED)
def test_a_machine_is_taken_for_its_target(names, memory, capability, target):
    found = guess(names, memory, capability)
    assert (found.name if found else None) == target


def test_this_machine_reads_what_a_board_says(tmp_path, monkeypatch):
    """The files of a board as recorded, with its NULs; no driver is asked here."""
    from ssm_export import machine, targets

    compatible, model = tmp_path / "compatible", tmp_path / "model"
    compatible.write_bytes(b"nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0")
    model.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    monkeypatch.setattr(targets, "_MODULE", compatible)
    monkeypatch.setattr(machine, "JETSON_MODEL", model)
    monkeypatch.setattr(machine, "find_gpus", list)
    found = this_machine()
    assert found is not None and found.name == "jetson-agx-orin"
    for file in (compatible, model):
        file.unlink()
    assert this_machine() is None


GOOD = {
    "description": "my board",
    "compute_capability": "8.7",
    "engines": ["tensorrt"],
    "precisions": ["fp16"],
    "platform": "linux-aarch64",
    "jetpack": ["6.2"],
    "tensorrt": "10.7",
    "memory_gb": 8,
    "unified_memory": True,
    "reserve_gb": 1.5,
    "bandwidth_gb_s": 68,
    "power_modes": [{"name": "15W", "watts": 15, "bandwidth_gb_s": 68}],
    "shared_memory_per_block_kb": 163,
    "multiprocessors": 8,
    "peak_tflops": {"fp16": 10},
    "known_as": ["p0000-0000"],
    "sources": {"memory_gb": "its data sheet"},
}
REQUIRED = ("description", "compute_capability", "engines", "precisions")


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Read a document as a target file."""
    file = tmp_path_factory.mktemp("targets") / "mine.yaml"

    def make(document):
        file.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        return read_target(file)

    return make


def refused(read, document):
    with pytest.raises(SsmExportError) as caught:
        read(document)
    assert caught.value.code == errors.BAD_CONFIG_FILE
    assert "mine.yaml" in str(caught.value)
    return caught.value.what


def test_a_good_file_of_ones_own(read):
    target = read(GOOD)
    assert (target.name, target.capability) == ("mine", (8, 7))
    assert target.tensorrt == "10.7"  # its own goes before JetPack's
    assert target.available_bytes == 6.5 * 2**30
    least = read({key: GOOD[key] for key in REQUIRED})
    assert (least.bandwidth_gb_s, least.available_bytes, least.tensorrt) == (None, None, "")
    assert read({**{key: GOOD[key] for key in REQUIRED}, "jetpack": ["7.0"]}).tensorrt == "10.13"


@pytest.mark.parametrize("key", REQUIRED)
def test_a_key_that_has_to_be_there_is_named(read, key):
    assert f"'{key}' is missing" in refused(read, {k: v for k, v in GOOD.items() if k != key})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)


@given(key=st.sampled_from(sorted(GOOD)), value=VALUES)
def test_a_value_is_taken_or_its_key_is_named(read, key, value):
    """Whatever stands at a key, the file is read with that very value, or the key is named."""
    try:
        target = read({**GOOD, key: value})
    except SsmExportError as error:
        assert error.code == errors.BAD_CONFIG_FILE
        assert f"'{key}'" in error.what
        return
    if key == "sources":
        assert set(target.sources) == set(value) == set()
    elif key == "peak_tflops":
        assert dict(target.peak_tflops) == value == {}
    elif key in ("jetpack", "power_modes", "known_as"):
        assert len(getattr(target, key)) == len(value)
    else:
        assert getattr(target, key) == value
        assert not isinstance(value, float) or (0 < value < math.inf)


@given(key=st.text(min_size=1, max_size=12).filter(lambda text: text not in GOOD))
def test_a_key_that_there_is_not_is_named(read, key):
    said = refused(read, {**GOOD, key: 1})
    assert f"'{key}' is no key of a target" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engines": ["openvino"]}, "'engines' is ['openvino']: known are tensorrt-rtx, tensorrt"),
        ({"engines": []}, "'engines'"),
        ({"precisions": "fp16"}, "'precisions' is 'fp16': is not a list"),
        ({"precisions": ["int8"]}, "known are fp32, fp16, bf16"),
        ({"compute_capability": 8.7}, "put versions in quotes"),
        ({"compute_capability": "new"}, 'such as "8.7"'),
        ({"compute_capability": "86.0"}, "'86.0'"),
        ({"tensorrt": "ten"}, 'such as "10.3"'),
        ({"memory_gb": "8 GB"}, "'memory_gb' is '8 GB': not a number above 0"),
        ({"multiprocessors": 8.0}, "whole number"),
        ({"multiprocessors": True}, "whole number"),
        ({"jetpack": ["5.1"]}, "5.1 is not in configs/jetpack.yaml, which has 6.1, 6.2"),
        ({"reserve_gb": 8}, "'reserve_gb' is 8, 'memory_gb' only 8"),
        ({"power_modes": [{"name": "15W"}]}, "has not both 'name' and 'bandwidth_gb_s'"),
        ({"power_modes": [{"name": "a", "bandwidth_gb_s": 1, "watt": 3}]}, "has no 'watt'"),
        ({"power_modes": [{"name": "a", "bandwidth_gb_s": 69}]}, "more than 'bandwidth_gb_s'"),
        ({"peak_tflops": {"fp17": 1}}, "known are fp32"),
        ({"sources": {"bandwith": "x"}}, "'bandwith', which is no key"),
        ({"bandwith_gb_s": 3}, "did you mean 'bandwidth_gb_s'?"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_is_wrong(read, changes, said):
    assert said in refused(read, {**GOOD, **changes})


@pytest.mark.parametrize(("text", "said"), [("[1, 2]", "holds no keys"), ("a: [", "not readable")])
def test_a_file_that_is_no_yaml(read, text, said):
    assert said in refused(read, text)


def test_a_folder_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my-board.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "h100.yaml").write_text(yaml.safe_dump({**GOOD, "description": "mine"}))
    monkeypatch.setenv(OWN_TARGETS, str(tmp_path))
    assert {"my-board", "jetson-thor"} <= set(target_names())
    assert get_target("my-board").description == "my board"
    assert get_target("h100").description == "mine"
    assert guess(["p0000-0000"], 8 * 2**30).memory_gb == 8
    monkeypatch.setenv(OWN_TARGETS, str(tmp_path / "none"))
    with pytest.raises(SsmExportError, match=OWN_TARGETS) as caught:
        target_names()
    assert caught.value.code == errors.NO_SUCH_PATH


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
