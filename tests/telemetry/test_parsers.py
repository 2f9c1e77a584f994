"""Recorded lines of boards and cards, field by field as a person reads them."""

from __future__ import annotations

import pytest
from recorded import (
    AGX_ORIN,
    CAPPED,
    CLOCKS_FREE,
    CLOCKS_LOCKED,
    GB10,
    NO_POWER,
    ORIN_NANO,
    ORIN_NANO_ROOT,
    THOR,
    THOR_PEAKS,
    THOR_ROOT,
)

from ssm_export.telemetry import jetson, nvidia_smi, tegrastats


def test_orin_nano_as_root():
    reading = tegrastats.parse(ORIN_NANO_ROOT)
    assert reading.rails_w == {"VDD_IN": 17.946, "VDD_CPU_GPU_CV": 8.896, "VDD_SOC": 3.923}
    assert reading.clocks_mhz == {"gpu": 713, "memory": 3199, "cpu": 1984}
    assert (reading.gpu_load, reading.ram_mb) == (0.84, 6982)
    assert reading.temperatures_c["gpu"] == 63.5
    assert reading.temperatures_c["tj"] == 65.562
    assert len(reading.temperatures_c) == 9
    assert tegrastats.module_rails(reading.rails_w) == ("VDD_IN",)


def test_orin_nano_without_root_has_no_clocks_of_gpu_and_memory():
    reading = tegrastats.parse(ORIN_NANO)
    assert reading.clocks_mhz == {"cpu": 1420}
    assert reading.gpu_load == 0.0
    assert reading.rails_w["VDD_IN"] == 4.824


def test_agx_orin_leaves_out_what_is_powered_off_and_sums_its_rails():
    reading = tegrastats.parse(AGX_ORIN)
    assert "gpu" not in reading.temperatures_c
    assert "cv0" not in reading.temperatures_c
    assert reading.temperatures_c["cpu"] == 42.593
    assert reading.clocks_mhz == {"memory": 2133, "cpu": 729}
    rails = tegrastats.module_rails(reading.rails_w)
    assert rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert sum(reading.rails_w[name] for name in rails) == pytest.approx(6.831)


def test_thor_takes_the_present_of_three_numbers():
    reading = tegrastats.parse(THOR)
    rails = {"VDD_GPU": 37.528, "VDD_CPU_SOC_MSS": 18.961, "VIN_SYS_5V0": 18.331, "VIN": 87.426}
    assert reading.rails_w == rails
    assert reading.clocks_mhz == {"cpu": 972}
    assert reading.gpu_load is None
    module = tegrastats.module_rails(reading.rails_w)
    assert module == ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")


def test_thor_with_peaks_of_temperatures_and_too_few_rails():
    reading = tegrastats.parse(THOR_PEAKS)
    assert reading.temperatures_c["gpu"] == 41.843
    assert tegrastats.module_rails(reading.rails_w) == ()


def test_thor_as_root_has_a_clock_for_each_cluster():
    reading = tegrastats.parse(THOR_ROOT)
    assert reading.clocks_mhz == {"gpu": 314, "memory": 2750, "cpu": 972}
    assert reading.gpu_load is None
    assert reading.rails_w["VIN"] == 19.78


def test_a_rail_may_be_negative_at_rest():
    """An AGX Thor at rest reports a calibration offset of its GPU's rail."""
    reading = tegrastats.parse("RAM 26063/125772MB (lfb 35x4MB) VDD_GPU -392mW/-392mW")
    assert reading.rails_w == {"VDD_GPU": -0.392}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "tegrastats: command failed",
        "RAM lots/7620MB",
        "\x00\xff garbage @ 12C",
        "VDD_IN mW",
    ],
)
def test_what_is_no_line_of_tegrastats_is_left_out(line):
    assert tegrastats.parse(line) is None


def test_a_capped_card():
    reading = nvidia_smi.parse(CAPPED)
    assert reading.rails_w == {"board": 281.03}
    assert reading.clocks_mhz == {"gpu": 1950, "memory": 8001}
    assert reading.temperatures_c == {"gpu": 66}
    assert (reading.gpu_load, reading.ram_mb) == (0.97, 28889)
    assert reading.reasons == ("software power cap",)


def test_what_a_card_does_not_say_is_left_out():
    reading = nvidia_smi.parse(NO_POWER)
    assert (reading.rails_w, reading.clocks_mhz) == ({}, {"gpu": 1710})
    spark = nvidia_smi.parse(GB10)
    assert (spark.rails_w, spark.clocks_mhz, spark.ram_mb) == ({"board": 10.8}, {"gpu": 2405}, None)
    assert spark.reasons == ()


def test_units_do_no_harm():
    line = "289.40 W, 2610 MHz, 10501 MHz, 68, 97 %, 9001 MiB, 0x0000000000000000"
    assert nvidia_smi.parse(line).rails_w == {"board": 289.4}


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0x0, ()),
        (0x1, ()),
        (0x5, ("software power cap",)),
        (0x48, ("hardware slowdown", "hardware thermal slowdown")),
        (0x20, ("software thermal slowdown",)),
        (0x400, ("unknown reason 0x400",)),
    ],
)
def test_bits_of_reasons(mask, reasons):
    assert nvidia_smi.reasons(mask) == reasons


@pytest.mark.parametrize(
    "line",
    [
        "",
        "No devices were found",
        "Unable to determine the device handle for GPU0: Unknown Error",
        'Field "clocks_event_reasons.active" is not a valid field to query.',
        "[N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]",
    ],
)
def test_what_is_no_line_of_nvidia_smi_is_left_out(line):
    assert nvidia_smi.parse(line) is None


def test_jetson_clocks_locked_and_not():
    assert jetson.shown_state(CLOCKS_FREE) == "not locked"
    assert jetson.shown_state(CLOCKS_LOCKED) == "locked"
    assert jetson.shown_state("Error: Run this script(/usr/bin/jetson_clocks) as a root user") == ""


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def test_a_jetson_s_files(tmp_path):
    """The folders are those of the developer guide; the figures are an Orin Nano's at 25 W."""
    write(tmp_path / "class/devfreq/17000000.gpu", min_freq=306000000, max_freq=918000000)
    write(tmp_path / "devices/system/cpu/cpufreq/policy0", scaling_max_freq=1344000)
    write(tmp_path / "class/hwmon/hwmon1", oc1_event_cnt=3, oc2_event_cnt=0)
    write(tmp_path / "class/thermal/cooling_device4", type="gpu-throttle-alert", cur_state=0)
    write(tmp_path / "class/thermal/cooling_device5", type="pwm-fan", cur_state=2)
    assert jetson.clock_limits_mhz(tmp_path) == {"gpu": 918.0, "cpu": 1344.0}
    assert jetson.clocks_state(tmp_path) == "not locked"
    before = jetson.throttle_state(tmp_path)
    assert jetson.throttled_between(before, before) == ()
    (tmp_path / "class/hwmon/hwmon1/oc1_event_cnt").write_text("5\n")
    (tmp_path / "class/thermal/cooling_device4/cur_state").write_text("1\n")
    said = jetson.throttled_between(before, jetson.throttle_state(tmp_path))
    assert said == ("over-current oc1: 2 events", "thermal gpu-throttle-alert")
    (tmp_path / "class/devfreq/17000000.gpu/min_freq").write_text("918000000\n")
    assert jetson.clocks_state(tmp_path) == "locked"


def test_no_jetson_s_files(tmp_path):
    assert jetson.clock_limits_mhz(tmp_path) == {}
    assert jetson.throttle_state(tmp_path) == {}
    assert jetson.clocks_state(tmp_path).startswith("not known")
