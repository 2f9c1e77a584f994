"""doctor with everything in order and with everything broken; the facts that reports carry."""

import ctypes
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile

import pytest

from ssm_export import machine
from ssm_export.engines import doctor
from ssm_export.engines.doctor import examine


@pytest.fixture(scope="module")
def report():
    return examine(try_build=False)


def test_it_finds_what_is_here(report):
    probes = {(probe.group, probe.name): probe for probe in report.probes}
    assert probes["packages", "numpy"].detail == __import__("numpy").__version__
    assert probes["runners", "onnxruntime"].ok
    assert report.ok
    assert probes["machine", "python"].detail.startswith(sys.version.split()[0])


def test_its_json_is_json_and_has_the_head_keys(report):
    document = json.loads(json.dumps(report.as_json()))
    assert document["ok"] is True
    assert {"name", "group", "ok", "detail"} == set(document["checks"][0])
    assert document["machine"]["cores"] >= 1


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)
def test_it_really_builds_an_engine():
    ok, detail = doctor._try_build()
    assert ok
    assert "built a one-layer engine with 1." in detail


def test_every_probe_may_fail(monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("this machine is on fire")

    for place, names in (
        (machine, ("cpu_name", "core_count", "memory_bytes", "jetson", "power_mode", "find_gpus")),
        (doctor, ("_python", "installed_version", "gpu_names", "run_tool", "import_module")),
        (doctor.shutil, ("disk_usage",)),
        (doctor.platform, ("platform",)),
        (tempfile, ("TemporaryDirectory",)),
        (importlib.util, ("find_spec",)),
        (ctypes, ("CDLL",)),
    ):
        for name in names:
            monkeypatch.setattr(place, name, broken)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = examine()
    assert not report.ok
    assert not any(probe.ok for probe in report.probes)
    on_fire = [probe for probe in report.probes if "on fire" in probe.detail]
    assert {probe.group for probe in on_fire} == {"machine", "packages", "runners", "builders"}
    facts = json.loads(json.dumps(report.as_json()))["machine"]
    assert (facts["cpu"], facts["gpu"], facts["cores"]) == ("", "", 0)


def _raise():
    raise OSError("broken")


def test_a_failure_of_all_runners_is_one_line(monkeypatch):
    monkeypatch.setattr(doctor, "available_runners", _raise)
    runners = [probe for probe in examine(try_build=False).probes if probe.group == "runners"]
    assert [(probe.name, probe.ok) for probe in runners] == [("runners", False)]


def test_versions_are_cheap_and_import_nothing():
    code = (
        "import sys; from ssm_export.machine import tool_versions; v = tool_versions(); "
        "print(sorted({'onnx', 'torch', 'onnxruntime', 'numpy'} & set(sys.modules)), v['onnx'])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert said.stdout.split() == ["[]", importlib.metadata.version("onnx")]


def test_a_jetson_is_known_by_its_files(tmp_path, monkeypatch):
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    model = tmp_path / "model"
    model.write_bytes(b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    monkeypatch.setattr(machine, "JETSON_RELEASE", release)
    monkeypatch.setattr(machine, "JETSON_MODEL", model)
    assert machine.jetson().startswith("NVIDIA Jetson Orin Nano")
    assert machine.jetson().endswith("Super, L4T 36.4.3")
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(machine, "run_tool", lambda *_: "NV Power Mode: MAXN_SUPER\n2\n")
    assert machine.power_mode() == "MAXN_SUPER"
    assert machine.machine_facts()["power_mode"] == "MAXN_SUPER"
    release.unlink()
    assert machine.jetson() == machine.power_mode() == ""
