"""The whole way from a program on PATH to the telemetry of a report."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from recorded import CAPPED, ORIN_NANO_ROOT, THOR

from ssm_export import telemetry
from ssm_export.telemetry.reading import energy_j
from ssm_export.telemetry.recorder import Recorder
from ssm_export.telemetry.sources import Rapl, Tegrastats, find_source
from ssm_export.telemetry.streams import ask

FOREVER = 'while :; do echo "{line}"; sleep 0.01; done'


def summary(device: str, seconds: float) -> dict:
    with telemetry.record(device) as recorder:
        recorder.busy()
        began = time.perf_counter()
        time.sleep(seconds)
        ended = time.perf_counter()
    found = recorder.summary()
    return {**found, "joules": recorder.energy_j(began, ended), "seconds": ended - began}


def test_a_jetson(program):
    program("tegrastats", FOREVER.format(line=ORIN_NANO_ROOT))
    program("nvpmodel", "echo 'NV Power Mode: MAXN_SUPER'; echo 2")
    found = summary("cpu", 0.3)
    assert (found["source"], found["power_mode"]) == ("tegrastats", "MAXN_SUPER")
    assert found["power_rail"] == "VDD_IN"
    assert found["samples"] >= 5
    assert found["mean_w"] == pytest.approx(17.946)
    assert found["idle_w"] == pytest.approx(17.946)
    assert found["joules"] == pytest.approx(17.946 * found["seconds"])
    assert found["clocks"]["memory"]["median_mhz"] == 3199
    assert found["temperatures"]["tj"]["max_c"] == 65.562
    assert found["rails"]["VDD_SOC"]["mean_w"] == pytest.approx(3.923)
    assert (found["throttled"], found["notes"]) == ([], [])


def test_thor_s_power_is_the_module_s(program):
    program("tegrastats", FOREVER.format(line=THOR))
    found = summary("cuda", 0.2)
    assert found["power_rail"] == "VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0"
    assert found["mean_w"] == pytest.approx(37.528 + 18.961 + 18.331)
    assert found["rails"]["VIN"]["mean_w"] == pytest.approx(87.426)


SMI = """
case "$*" in
  *clocks.max.sm*) echo "NVIDIA RTX A6000, 2100, 8001, 300.00";;
  *{unknown}*) echo 'Field "{unknown}" is not a valid field to query.' >&2; exit 2;;
  *-lms*) echo "$*" > "$0.asked"; while :; do echo "{line}"; sleep 0.01; done;;
  *power.draw.instant*) echo "{instant}";;
  *) echo 0x0000000000000004;;
esac
"""


@pytest.mark.parametrize(
    "unknown", ["clocks_event_reasons.active", "clocks_throttle_reasons.active"]
)
def test_a_card_of_a_newer_and_an_older_driver(program, unknown):
    program("nvidia-smi", SMI.format(line=CAPPED, unknown=unknown, instant="280.11"))
    found = summary("NVIDIA RTX A6000", 0.3)
    assert (found["source"], found["device"]) == ("nvidia-smi", "NVIDIA RTX A6000")
    assert found["power_rail"] == "board"
    assert found["joules"] == pytest.approx(281.03 * found["seconds"])
    assert found["throttled"] == ["software power cap in 100% of the samples"]
    (below,) = found["below_maximum"]
    assert "1950 MHz" in below
    assert "2100 MHz" in below


@pytest.mark.parametrize(
    ("unknown", "instant", "asked", "average_s"),
    [
        ("nothing", "280.11", "power.draw.instant", 0.0),
        ("nothing", "[N/A]", "power.draw", 1.0),
        ("power.draw.instant", "", "power.draw", 1.0),
    ],
)
def test_the_power_of_the_moment_is_asked_where_it_is_known(
    program, unknown, instant, asked, average_s
):
    """``power.draw`` is the mean of a second on most newer cards; the report says which it was."""
    file = program("nvidia-smi", SMI.format(line=CAPPED, unknown=unknown, instant=instant))
    with telemetry.record("NVIDIA RTX A6000") as recorder:
        assert recorder.has_power()
        assert recorder.settle_s == pytest.approx(average_s + 0.2)
    words = file.with_name("nvidia-smi.asked").read_text().split()
    (query,) = [word for word in words if word.startswith("--query-gpu=")]
    assert query.removeprefix("--query-gpu=").split(",")[0] == asked
    found = recorder.summary()
    assert (found["power_reading"], found["average_s"]) == (asked, average_s)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            ORIN_NANO_ROOT.replace("VDD_IN 17946mW/15710mW ", ""),
            "the rails that tegrastats names are no known module's: VDD_CPU_GPU_CV, VDD_SOC",
        ),
        ("RAM 1/2MB", "tegrastats gives no power of this device"),
    ],
)
def test_readings_without_the_power_of_the_module_say_so(program, line, said):
    program("tegrastats", FOREVER.format(line=line))
    found = summary("cpu", 0.2)
    assert found["source"] == "tegrastats"
    assert (found["mean_w"], found["joules"], found["power_rail"]) == (None, None, "")
    assert found["notes"] == [said]


def test_an_alert_that_begins_and_ends_inside_a_run_is_seen(program, tmp_path):
    alert = tmp_path / "sys/class/thermal/cooling_device4"
    alert.mkdir(parents=True)
    (alert / "type").write_text("gpu-throttle-alert\n")
    state = alert / "cur_state"
    state.write_text("0\n")
    file = program("tegrastats", FOREVER.format(line=ORIN_NANO_ROOT))
    source = Tegrastats(str(file), tmp_path / "sys")
    recorder = Recorder(source)
    recorder.start()
    recorder.busy()
    for value in ("1\n", "0\n"):
        state.write_text(value)
        end = source.count() + 5
        while source.count() < end:
            time.sleep(0.005)
    recorder.stop()
    (said,) = recorder.summary()["throttled"]
    assert re.fullmatch(r"thermal gpu-throttle-alert in \d\d% of the samples", said)


def test_an_alert_is_named_once(program, tmp_path):
    """It is on at the end, and was at the samples: the share of the samples says it."""
    alert = tmp_path / "sys/class/thermal/cooling_device4"
    alert.mkdir(parents=True)
    (alert / "type").write_text("gpu-throttle-alert\n")
    (alert / "cur_state").write_text("1\n")
    file = program("tegrastats", FOREVER.format(line=ORIN_NANO_ROOT))
    recorder = Recorder(Tegrastats(str(file), tmp_path / "sys"))
    recorder.start()
    recorder.busy()
    time.sleep(0.1)
    recorder.stop()
    throttled = recorder.summary()["throttled"]
    assert throttled == ["thermal gpu-throttle-alert in 100% of the samples"]


def test_a_program_that_hangs_is_ended(program, tmp_path):
    program("tegrastats", f"echo $$ > {tmp_path}/pid; trap '' TERM; while :; do sleep 1; done")
    began = time.monotonic()
    found = summary("cpu", 0.05)
    assert time.monotonic() - began < 10
    assert (found["source"], found["joules"]) == (None, None)
    assert any("printed nothing" in note for note in found["notes"])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_question_that_is_not_answered_is_given_up(program):
    """jetson_clocks is a shell script: what it waits for must end too, or its output stays open."""
    program("jetson_clocks", "sleep 60; echo late")
    began = time.monotonic()
    assert ask("jetson_clocks", "--show", seconds=0.3) == ""
    assert time.monotonic() - began < 2
    program("nvpmodel", "echo half an answer; exit 1")
    assert ask("nvpmodel", "-q") == ""
    assert ask("no-such-program") == ""


def test_a_program_that_ends_by_itself(program):
    program("tegrastats", f"echo '{ORIN_NANO_ROOT}'; exit 3")
    found = summary("cpu", 0.05)
    (note,) = found["notes"]
    assert "status 3" in note
    assert "1 line" in note
    assert found["joules"] is None


def test_a_program_that_prints_nonsense(program):
    program("tegrastats", "while :; do head -c 200 /dev/urandom; echo; sleep 0.01; done")
    found = summary("cpu", 0.1)
    assert found["source"] is None
    assert any("nothing that can be read" in note for note in found["notes"])


def test_a_program_that_cannot_be_run(program):
    program("tegrastats", "").write_bytes(b"\x7fELF no program")
    found = summary("cpu", 0.05)
    assert found["source"] is None
    assert any("cannot be started" in note for note in found["notes"])


def test_the_programs_a_machine_lacks(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_source("NVIDIA H100") == "nvidia-smi is not installed"
    assert find_source("cpu", tmp_path) == "this system has no power counters for its CPU"


def rapl_package(folder: Path, name: str, microjoules: int, full: int = 262143328850) -> Path:
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{full}\n")
    return folder


def test_the_counters_of_a_processor_wrap_around(tmp_path):
    package = rapl_package(tmp_path / "intel-rapl:0", "package-0", 999_000, full=1_000_000)
    source = find_source("cpu", tmp_path)
    assert isinstance(source, Rapl)
    source.start()
    while not source.count():
        time.sleep(0.001)
    (package / "energy_uj").write_text("4000\n")  # 1000 up to the end of its range, and 4000
    source.stop()
    readings = source.readings()
    joules = sum(
        reading.rails_w["package"] * (later - earlier)
        for (_, reading), (earlier, _), (later, _) in zip(
            readings, source._stream.values, source._stream.values[1:], strict=False
        )
    )
    assert joules == pytest.approx(5000e-6)


def test_other_counters_than_a_package_s_are_not_counted(tmp_path):
    rapl_package(tmp_path / "intel-rapl:0", "psys", 1)
    assert isinstance(find_source("cpu", tmp_path), str)


def test_energy_is_the_integral_over_the_interval():
    """Power 2t + 1 over [1, 3] and [5, 5.5]: 10 and 5.75 joules, whatever the samples' times."""
    inner = np.random.default_rng(0).uniform(0, 6, 50)
    times = np.sort(np.concatenate([inner, [0.0, 1.0, 3.0, 5.0, 5.5, 6.0]]))
    powers = 2 * times + 1
    assert energy_j(times, powers, 1, 3) == pytest.approx(10)
    assert energy_j(times, powers, 5, 5.5) == pytest.approx(5.75)


def test_samples_of_what_ran_before_and_after_do_not_count():
    times = np.arange(0.05, 4.0, 0.1)
    powers = np.where((times > 1) & (times < 3), 200.0, 600.0)
    assert energy_j(times, powers, 1, 3) == pytest.approx(400)


def test_too_few_samples_give_no_energy():
    times = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert energy_j(times, [1.0] * 6, 0.1, 4.9) is None
    assert energy_j(times, [1.0] * 6, 0.1, 5.0) == pytest.approx(4.9)
    assert energy_j([], [], 0.0, 1.0) is None
