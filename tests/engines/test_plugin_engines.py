"""Engines whose scans are plugins: what happens before TensorRT is needed."""

from __future__ import annotations

import platform
import shutil
import struct
from dataclasses import replace

import onnx
import pytest

from ssm_export import errors
from ssm_export.bundle import UNIFIED, Bundle, EngineEntry
from ssm_export.engines import _plugins, _trt_choice, tensorrt
from ssm_export.engines._plugins import plugin_graph, plugin_lowering
from ssm_export.engines._sources import sources
from ssm_export.engines._trt_choice import choose_engines
from ssm_export.engines._trt_profile import Ranges
from ssm_export.errors import SsmExportError
from ssm_export.exporter import ExportOptions, export
from ssm_export.lowering import PLUGIN_DOMAIN
from ssm_export.resources import load_plugins
from ssm_export.targets import get_target

ORIN = get_target("jetson-agx-orin")
RANGES = Ranges.checked(4, 1, 256, 128)


@pytest.fixture(scope="module")
def exported(bundle_of) -> Bundle:
    """A bundle exported for plugins on an Orin."""
    pytest.importorskip("triton", reason="triton is not installed")
    return Bundle.open(bundle_of("mamba2", lowering="plugin", target="jetson-agx-orin"))


@pytest.fixture
def bundle(exported, tmp_path) -> Bundle:
    shutil.copytree(exported.path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


ELF_MACHINES = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183}


def elf_header(machine: int) -> bytes:
    """The first 20 bytes of a shared library of 64 bits, little end first."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A file in the place of the library, of this machine by its header; nothing here loads it."""
    file = tmp_path / "libssm_export_plugins.so"
    file.write_bytes(elf_header(ELF_MACHINES[platform.machine().lower()]))
    monkeypatch.setenv("SSM_EXPORT_PLUGIN_LIBRARY", str(file))
    return file


@pytest.fixture
def no_library(monkeypatch):
    load_plugins()
    from ssm_export_plugins import library

    monkeypatch.delenv("SSM_EXPORT_PLUGIN_LIBRARY", raising=False)
    monkeypatch.setattr(library, "NAME", "nowhere.so")


def test_export_writes_the_graph_beside_native_ones(exported):
    assert set(exported.manifest.graphs[UNIFIED]) == {"plugin-jetson-agx-orin"}
    assert exported.manifest.lowering["chosen"] == "native"
    assert exported.manifest.verified
    model = onnx.load(
        exported.graph_path(UNIFIED, "plugin-jetson-agx-orin"), load_external_data=False
    )
    assert _plugins.plugin_nodes(model) == sum(n.domain == PLUGIN_DOMAIN for n in model.graph.node)
    assert _plugins.plugin_nodes(model) == 3, "each of three layers is one node"
    weights = {t.external_data[0].value for t in model.graph.initializer if t.external_data}
    assert weights == {"weights.data"}
    assert (exported.path / "reports" / "kernels-jetson-agx-orin.json").is_file()


def test_export_says_that_the_plugin_graph_was_not_run(tiny_checkpoint, tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    options = ExportOptions(lowering="plugin", target="h100", parity="quick", verify=False)
    report = export(tiny_checkpoint("mamba2"), tmp_path / "bundle", options)
    (note,) = (note for note in report.notes if "plugin" in note)
    assert "unified.plugin-h100.onnx" in note
    assert "not run" in note
    assert "--runner tensorrt" in note


def test_the_stored_kernels_are_those_of_the_target(exported):
    load_plugins()
    import base64

    from ssm_export_plugins.container import read

    model = onnx.load(
        exported.graph_path(UNIFIED, "plugin-jetson-agx-orin"), load_external_data=False
    )
    for node in (n for n in model.graph.node if n.domain == PLUGIN_DOMAIN):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        (section,) = read(base64.b64decode(attributes["kernels"]))
        assert section.op == node.op_type
        assert {image.capability for image in section.images} == {87}
        assert len(section.inputs) == len(node.input)


def test_a_board_without_triton_takes_the_stored_graph(bundle, monkeypatch):
    load_plugins()
    from ssm_export_plugins import aot

    monkeypatch.setattr(aot, "compile_calls", lambda *a, **k: pytest.fail("compiled again"))
    assert plugin_graph(bundle, ORIN) == bundle.graph_path(UNIFIED, "plugin-jetson-agx-orin")


def test_without_triton_another_target_names_the_extra_and_what_there_is(bundle, monkeypatch):
    load_plugins()
    from ssm_export_plugins import aot

    def missing() -> str:
        raise errors.missing_package("triton", "kernels", "compiling GPU kernels")

    monkeypatch.setattr(aot, "triton_version", missing)
    before = sorted(bundle.path.rglob("*"))
    with pytest.raises(SsmExportError, match=r"ssm-export\[kernels\]") as caught:
        plugin_graph(bundle, get_target("h100"))
    assert "holds kernels for jetson-agx-orin and none for h100" in str(caught.value)
    assert "--lowering plugin --target h100" in str(caught.value)
    assert sorted(bundle.path.rglob("*")) == before


def test_boards_of_one_chip_have_a_graph_each(bundle):
    """Kernels are cut for the number of multiprocessors: an Orin Nano has half of an AGX's."""
    nano = get_target("jetson-orin-nano")
    assert nano.capability == ORIN.capability
    assert plugin_graph(bundle, nano) != plugin_graph(bundle, ORIN)
    assert set(bundle.manifest.graphs[UNIFIED]) == {
        "plugin-jetson-agx-orin",
        "plugin-jetson-orin-nano",
    }


def test_showing_a_command_makes_nothing(bundle, library):
    before = {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")}
    commands = tensorrt.trtexec_commands(bundle, "h100", "tensorrt", lowering="plugin")
    assert "unified.plugin-h100.onnx" in commands[UNIFIED]
    assert f"--staticPlugins={library}" in commands[UNIFIED]
    assert {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")} == before


def test_a_command_for_another_platform_has_no_path_of_this_one(bundle, library):
    if ORIN.platform == tensorrt.machine_platform():
        pytest.skip("this machine is of the target's platform")
    commands = tensorrt.trtexec_commands(bundle, ORIN, "tensorrt", lowering="plugin")
    assert "--staticPlugins=libssm_export_plugins.so" in commands[UNIFIED].split()


def test_one_engine_with_two_profiles(bundle, library):
    (source,) = sources(bundle, ORIN, "tensorrt", None, RANGES, "10.3.0")
    assert (source.form, source.lowering) == (UNIFIED, "plugin-jetson-agx-orin")
    assert source.library == library
    assert source.plugins == 3
    step, prefill = source.shapes()
    assert step["input_ids"] == [[1, 1], [1, 1], [4, 1]]
    assert prefill["input_ids"] == [[1, 1], [1, 128], [4, 256]]
    assert step["past_ssm.0"] == prefill["past_ssm.0"]


def test_the_command_of_the_vendors_tool_has_both_profiles(bundle, library):
    commands = tensorrt.trtexec_commands(bundle, ORIN, "tensorrt", lowering="plugin")
    words = commands[UNIFIED].split()
    assert [word for word in words if word.startswith("--profile=")] == [
        "--profile=0",
        "--profile=1",
    ]
    assert words.index("--profile=0") < words.index("--profile=1")
    shapes = [word for word in words if word.startswith("--maxShapes=input_ids:")]
    assert [word.split(",")[0] for word in shapes] == [
        "--maxShapes=input_ids:8x1",
        "--maxShapes=input_ids:8x1024",
    ]


def test_a_bundle_made_for_plugins_is_not_quietly_built_without_them(bundle, no_library):
    with pytest.raises(SsmExportError, match=r"plugins/tensorrt/README.md") as caught:
        sources(bundle, ORIN, "tensorrt", None, RANGES, "10.3.0")
    assert caught.value.code == errors.PLUGIN_LIBRARY
    forms = sources(bundle, ORIN, "tensorrt", "native", RANGES, "10.3.0")
    assert [source.form for source in forms] == ["step", "prefill"]


def test_without_a_library_another_target_gets_native_engines(bundle, no_library):
    forms = sources(bundle, get_target("h100"), "tensorrt", None, RANGES, "10.3.0")
    assert [source.lowering for source in forms] == ["native", "native"]


@pytest.mark.parametrize(
    ("target", "kind", "lowering", "said"),
    [
        ("rtx-ada", "tensorrt-rtx", "plugin", "runs no plugins"),
        ("jetson-agx-orin", "tensorrt", "ort", "no engines from 'ort'"),
        ("rtx-any", "tensorrt", "plugin", "stands for many GPUs"),
    ],
)
def test_lowerings_that_cannot_be(bundle, library, target, kind, lowering, said):
    with pytest.raises(SsmExportError, match=said) as caught:
        sources(bundle, get_target(target), kind, lowering, RANGES, "10.3.0")
    assert caught.value.code == errors.BAD_OPTION


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lowering": "plugin"}, "plugin needs --target"),
        ({"lowering": "plugin", "target": "rtx-any"}, "stands for many GPUs"),
        ({"lowering": "plugin", "target": "h101"}, "h100"),
    ],
)
def test_export_options_that_cannot_be(options, said):
    with pytest.raises(SsmExportError, match=said):
        ExportOptions(**options).check()


def _entry(bundle: Bundle, form: str, **changed: str) -> EngineEntry:
    file = bundle.path / f"{form}.engine"
    file.write_bytes(form.encode())
    entry = EngineEntry(
        form=form,
        target=ORIN.name,
        engine="tensorrt",
        file=bundle.entry(file.name),
        versions={"tensorrt": "10.3.0"},
        platform=tensorrt.machine_platform(),
        compute_capability="8.7",
        profile={"batch": [1, 1, 4], "time": [1, 128, 256]},
        ran=False,
        note="",
    )
    return replace(entry, **changed)


@pytest.fixture
def tensorrt_here(monkeypatch):
    """A machine with TensorRT 10.3.0."""
    monkeypatch.setattr(_trt_choice, "require_packages", lambda kind: None)
    monkeypatch.setattr(_trt_choice, "_installed", lambda module: "10.3.0")


def test_the_unified_engine_goes_before_one_per_form(bundle, tensorrt_here):
    unified = _entry(bundle, UNIFIED, lowering="plugin-jetson-agx-orin", library="0" * 64)
    bundle.manifest.engines = (_entry(bundle, "step"), _entry(bundle, "prefill"), unified)
    assert choose_engines(bundle, "tensorrt", (8, 7)) == {UNIFIED: unified}
    bundle.save()
    assert Bundle.open(bundle.path).manifest.engines[-1] == unified


class Registry:
    """TensorRT's registry, as far as the runner asks it."""

    def __init__(self, takes: bool) -> None:
        self.takes, self.loaded = takes, []

    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        assert (name, version, namespace) == ("SsdScan", "1", "ssm_export")
        return object() if self.loaded else None

    def load_library(self, path: str) -> object | None:
        self.loaded += [path] if self.takes else []
        return object() if self.takes else None


class TensorRt:
    """The module, as far as the runner asks it."""

    __version__ = "10.3.0"

    def __init__(self, takes: bool = True) -> None:
        self.registry = Registry(takes)

    def get_plugin_registry(self) -> Registry:
        return self.registry


def test_the_library_is_loaded_once(library):
    module = TensorRt()
    _trt_choice.load_library(module)
    _trt_choice.load_library(module)
    assert module.registry.loaded == [str(library)]


def test_a_library_that_tensorrt_refuses_is_an_error(library):
    with pytest.raises(SsmExportError, match=r"10\.3\.0 does not load it") as caught:
        _trt_choice.load_library(TensorRt(takes=False))
    assert caught.value.code == errors.PLUGIN_LIBRARY


def test_a_missing_library_is_an_error_before_the_engine(no_library):
    with pytest.raises(SsmExportError) as caught:
        _trt_choice.load_library(TensorRt())
    assert caught.value.code == errors.PLUGIN_LIBRARY


def test_a_missing_library_and_a_wrong_variable_are_told_apart(no_library, monkeypatch):
    with pytest.raises(SsmExportError, match="is not on this machine") as missing:
        _plugins.require_library()
    assert _plugins.find_library() is None
    monkeypatch.setenv("SSM_EXPORT_PLUGIN_LIBRARY", "/nowhere/lib.so")
    for look in (_plugins.find_library, _plugins.require_library):
        with pytest.raises(SsmExportError, match=r"is not there: /nowhere/lib\.so") as wrong:
            look()
        assert wrong.value.code == missing.value.code == errors.PLUGIN_LIBRARY
        assert "that SSM_EXPORT_PLUGIN_LIBRARY names is not there" in wrong.value.what
    assert "SSM_EXPORT_PLUGIN_LIBRARY" not in missing.value.what


def test_a_variable_that_names_no_file_is_not_passed_over(bundle, monkeypatch):
    """Neither is a native engine built in its place, nor is an older library taken."""
    monkeypatch.setenv("SSM_EXPORT_PLUGIN_LIBRARY", "/nowhere/lib.so")
    with pytest.raises(SsmExportError, match=r"/nowhere/lib\.so"):
        sources(bundle, get_target("h100"), "tensorrt", None, RANGES, "10.3.0")
    forms = sources(bundle, get_target("h100"), "tensorrt", "native", RANGES, "10.3.0")
    assert [source.form for source in forms] == ["step", "prefill"]


def test_a_library_for_another_machine_is_an_error_before_it_is_loaded(library):
    here = ELF_MACHINES[platform.machine().lower()]
    other, name = (183, "aarch64") if here == 62 else (62, "x86_64")
    library.write_bytes(elf_header(other))
    assert _plugins.find_library() == library
    module = TensorRt()
    with pytest.raises(SsmExportError, match=f"is built for {name}, this machine is") as caught:
        _trt_choice.load_library(module)
    assert caught.value.code == errors.PLUGIN_LIBRARY
    assert caught.value.where == f"{library} (SSM_EXPORT_PLUGIN_LIBRARY names it)"
    assert not module.registry.loaded


def test_the_name_of_the_lowering_is_the_chip_s():
    assert plugin_lowering(ORIN) == "plugin-jetson-agx-orin"
    assert plugin_lowering(get_target("rtx-blackwell")) == "plugin-rtx-blackwell"
