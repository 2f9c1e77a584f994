"""What the TensorRT runner decides before a GPU is needed, and its buffers without one."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from ssm_export import errors
from ssm_export.bundle import EngineEntry
from ssm_export.engines import _trt_choice as choice_module
from ssm_export.engines import open_runner
from ssm_export.engines._trt_choice import choose_engines, why_not_here
from ssm_export.engines._trt_engine import Buffers, from_device_type, to_device_type
from ssm_export.engines.tensorrt import machine_platform, mark_ran
from ssm_export.errors import SsmExportError
from ssm_export.machine import find_gpus

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)
no_gpu = pytest.mark.skipif(bool(find_gpus()), reason="this machine has a GPU")
HERE = "11.1.0"


@pytest.fixture
def here(monkeypatch):
    """A machine with every engine library, at one version."""
    monkeypatch.setattr(choice_module, "require_packages", lambda kind: None)
    monkeypatch.setattr(choice_module, "_installed", lambda module: HERE)


def _enter(toy, form="step", target="rtx-any", engine="tensorrt-rtx", **changed) -> EngineEntry:
    path = f"engines/{target}/{form}.engine"
    file = toy.bundle.path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(f"engine {form} {target}".encode())
    entry = EngineEntry(
        form=form,
        target=target,
        engine=engine,
        file=toy.bundle.entry(path),
        versions={engine.replace("-", "_"): HERE},
        platform=machine_platform(),
        compute_capability="8.6+",
        profile={"batch": [1, 1, 8]},
        ran=False,
        note="",
    )
    entry = replace(entry, **changed)
    toy.bundle.manifest.engines += (entry,)
    return entry


def test_a_bundle_without_engines_says_how_to_build_them(toy):
    with pytest.raises(SsmExportError, match=r"build .* --engine tensorrt-rtx") as caught:
        open_runner(toy.bundle, "tensorrt-rtx")
    assert caught.value.code == errors.NO_ENGINE


@needs_rtx
@no_gpu
def test_a_built_engine_without_a_gpu_says_what_to_do(toy):
    from ssm_export.engines.tensorrt import build

    build(toy.bundle)
    with pytest.raises(SsmExportError, match="copy the bundle to the device") as caught:
        open_runner(toy.bundle, "tensorrt-rtx")
    assert caught.value.code == errors.NO_GPU
    assert caught.value.code.exit_status == 3


@needs_rtx
def test_an_engine_of_another_version_is_refused(toy):
    _enter(toy, versions={"tensorrt_rtx": "0.9.1"})
    with pytest.raises(SsmExportError, match=r"tensorrt_rtx 0\.9\.1, here is 1") as caught:
        open_runner(toy.bundle, "tensorrt-rtx")
    assert caught.value.code == errors.ENGINE_MISMATCH
    assert "engines/rtx-any/step.engine" in str(caught.value)


def test_an_altered_engine_is_refused(toy, here):
    entry = _enter(toy)
    toy.bundle.file(entry.file).write_bytes(b"engine step rtx-anY")
    with pytest.raises(SsmExportError) as caught:
        choose_engines(toy.bundle, "tensorrt-rtx", (8, 9))
    assert caught.value.code == errors.HASH_MISMATCH
    toy.bundle.file(entry.file).unlink()
    with pytest.raises(SsmExportError) as caught:
        choose_engines(toy.bundle, "tensorrt-rtx", (8, 9))
    assert caught.value.code == errors.MISSING_FILE


@pytest.mark.parametrize(
    ("changed", "gpu", "why"),
    [
        ({}, (8, 6), ""),
        ({}, (8, 9), ""),
        ({}, (12, 0), ""),
        ({}, (7, 5), "it was built for compute capability 8.6+, this GPU has 7.5"),
        ({}, None, ""),
        ({"compute_capability": "8.9"}, (8, 9), ""),
        ({"compute_capability": "8.9"}, (12, 0), "compute capability 8.9, this GPU has 12.0"),
        ({"compute_capability": "12.0"}, (8, 9), "compute capability 12.0, this GPU has 8.9"),
        ({"platform": "windows-amd64"}, (8, 9), ""),
        ({"platform": "vax-vax", "engine": "tensorrt"}, (8, 9), "it was built on vax-vax"),
        ({"versions": {}}, (8, 9), "built with tensorrt_rtx unknown"),
    ],
)
def test_why_an_engine_cannot_run(toy, here, changed, gpu, why):
    entry = _enter(toy, **changed)
    if entry.engine == "tensorrt":
        entry = replace(entry, versions={"tensorrt": HERE})
    said = why_not_here(entry, gpu)
    assert why in said
    assert bool(said) == bool(why)


def test_the_engine_for_this_very_gpu_is_preferred(toy, here):
    for target, capability in (("rtx-ada", "8.9"), ("rtx-any", "8.6+"), ("rtx-ampere", "8.6")):
        for form in ("step", "prefill"):
            _enter(toy, form, target, compute_capability=capability)
    for gpu, target in (((8, 9), "rtx-ada"), ((8, 6), "rtx-ampere"), ((12, 0), "rtx-any")):
        chosen = choose_engines(toy.bundle, "tensorrt-rtx", gpu)
        assert {form: entry.target for form, entry in chosen.items()} == {
            "step": target,
            "prefill": target,
        }
    with pytest.raises(SsmExportError) as caught:
        choose_engines(toy.bundle, "tensorrt-rtx", (7, 5))
    assert caught.value.code == errors.ENGINE_MISMATCH


def test_only_verify_says_that_an_engine_ran(toy):
    step, prefill = _enter(toy, "step"), _enter(toy, "prefill")
    mark_ran(toy.bundle, step, "a GPU")
    assert [entry.ran for entry in toy.bundle.manifest.engines] == [True, False]
    assert toy.bundle.manifest.engines[0].note == "run on a GPU"
    assert toy.bundle.manifest.engines[1] == prefill


class FakeDevice:
    """Counts buffers."""

    def __init__(self):
        self.live, self.next = {}, 1000

    def allocate(self, size):
        self.next += 1000
        self.live[self.next] = size
        return self.next

    def free(self, address):
        del self.live[address]


def test_buffers_grow_swap_and_do_not_leak():
    device = FakeDevice()
    buffers = Buffers(device)
    past, present = buffers.sized("past", 100), buffers.sized("present", 100)
    assert buffers.sized("past", 60) == past
    buffers.swap("past", "present")
    assert (buffers.address("past"), buffers.address("present")) == (present, past)
    grown = buffers.sized("past", 200)
    assert grown != present
    assert device.live == {past: 100, grown: 200}


def test_bfloat16_travels_as_float32():
    import ml_dtypes

    values = np.array([0.0, -1.5, 3.0e38, 1e-30, np.inf]).astype(ml_dtypes.bfloat16)
    wide = values.astype(np.float32)
    stored = to_device_type(wide, "bfloat16")
    assert stored.tobytes() == values.tobytes()
    np.testing.assert_array_equal(from_device_type(stored, "bfloat16"), wide)
