"""doctor with everything in order and with everything broken; the facts that reports carry."""

import ctypes
import importlib.metadata
import importlib.util
import json
import platform
import shutil
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


def _library_probe():
    probes = examine(try_build=False).probes
    (found,) = (probe for probe in probes if probe.name == "plugin library")
    return found


def test_a_plugin_library_that_is_not_where_the_variable_says(tmp_path, monkeypatch):
    file = tmp_path / "libssm_export_plugins.so"
    monkeypatch.setenv("SSM_EXPORT_PLUGIN_LIBRARY", str(file))
    found = _library_probe()
    assert not found.ok
    assert f"SSM_EXPORT_PLUGIN_LIBRARY names is not there: {file}" in found.detail
    monkeypatch.setenv("SSM_EXPORT_PLUGIN_LIBRARY", str(tmp_path))
    assert f"SSM_EXPORT_PLUGIN_LIBRARY names is a folder: {tmp_path}" in _library_probe().detail


def test_a_plugin_library_of_another_machine(tmp_path, monkeypatch):
    file = tmp_path / "libssm_export_plugins.so"
    monkeypatch.setenv("SSM_EXPORT_PLUGIN_LIBRARY", str(file))
    file.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xf3\x00" + bytes(44))
    found = _library_probe()
    assert not found.ok
    assert f"{file} (SSM_EXPORT_PLUGIN_LIBRARY names it): it is built for riscv64" in found.detail
    file.write_bytes(b"<html>a page that was downloaded in its place</html>")
    assert "it is no shared library (no ELF file)" in _library_probe().detail


def test_what_a_plugin_library_was_built_for(tmp_path, monkeypatch):
    """A library that the compiler here makes, with the text and without it."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on this machine")
    for name, text, said in (
        ("one.so", "ssm_export_plugins built for TensorRT 10.3.0", "built for TensorRT 10.3.0"),
        ("two.so", "something else", "it does not say for which TensorRT"),
    ):
        file, source = tmp_path / name, tmp_path / "library.cpp"
        source.write_text(f'extern char const text[]; char const text[] = "{text}";')
        subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(file)], check=True)
        monkeypatch.setenv("SSM_EXPORT_PLUGIN_LIBRARY", str(file))
        found = _library_probe()
        assert (found.ok, found.detail) == (True, f"{file} ({platform.machine()}, {said})")


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
