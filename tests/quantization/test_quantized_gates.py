"""`verify` on a quantized bundle: what quantization costs passes, a mistake in the file does not.

Every fault is written into the weights file, and its hash into the manifest: the numbers catch it.
"""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from whole_graph import whole_logits

from ssm_export.bundle import Bundle
from ssm_export.progress import SILENT
from ssm_export.quantization import floors
from ssm_export.quantization.floors import Simulation
from ssm_export.quantization.quantizer import QuantizeOptions, quantize
from ssm_export.verification import verify
from ssm_export.verification.truth import Case

QUICK = ("logits", "states", "codes")
IN = "backbone.layers.0.mixer.in_proj.weight"
OUT = "backbone.layers.1.mixer.out_proj.weight"


@pytest.fixture(scope="module")
def quantized(bundle_of, family, tmp_path_factory):
    """``w8a8`` of a tiny model; it is copied before a fault is planted."""
    patch = pytest.MonkeyPatch()
    patch.setattr("ssm_export.quantization.drift.STEPS", (16,))
    folder = tmp_path_factory.mktemp("gates")
    source = Bundle.open(bundle_of(family, lowering="native"))
    ids = np.random.default_rng(8).integers(0, source.manifest.sizes["V"], 600)
    np.save(folder / "ids.npy", ids)
    options = QuantizeOptions(
        "w8a8", str(folder / "ids.npy"), sequences=6, tokens=48, sensitivity=False
    )
    quantize(source, folder / "bundle", options)
    patch.undo()
    return Bundle.open(folder / "bundle")


class Faulty:
    """A copy of a bundle whose weights file is open for changes."""

    def __init__(self, bundle: Bundle, folder) -> None:
        shutil.copytree(bundle.path, folder)
        self.bundle = Bundle.open(folder)
        self.path = folder / self.bundle.manifest.weights.path
        self.held = {}
        for form in ("step", "prefill"):
            graph = onnx.load(self.bundle.graph_path(form, "canonical"), load_external_data=False)
            self.held |= {tensor.name: tensor for tensor in graph.graph.initializer}

    def array(self, name: str) -> np.ndarray:
        """The content of an external tensor, writable in place."""
        tensor = self.held[name]
        said = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.memmap(
            self.path, dtype, "r+", offset=int(said["offset"]), shape=tuple(tensor.dims)
        )

    def inline(self, name: str, change) -> None:
        """Change a tensor that lies in the graphs themselves."""
        for form in ("step", "prefill"):
            for entry in self.bundle.manifest.graphs[form].values():
                path = self.bundle.path / entry.path
                model = onnx.load(path, load_external_data=False)
                for tensor in model.graph.initializer:
                    if tensor.name == name:
                        array = onnx.numpy_helper.to_array(tensor)
                        tensor.CopyFrom(onnx.numpy_helper.from_array(change(array), name))
                onnx.save(model, path)

    def scale(self, name: str, change) -> None:
        if self.held[name].external_data:
            array = self.array(name)
            array[...] = change(np.array(array))
            array.flush()
        else:
            self.inline(name, change)

    def closed(self) -> Bundle:
        manifest = self.bundle.manifest
        manifest.weights = self.bundle.entry(manifest.weights.path)
        for form, graphs in manifest.graphs.items():
            manifest.graphs[form] = {n: self.bundle.entry(e.path) for n, e in graphs.items()}
        self.bundle.save()
        return Bundle.open(self.bundle.path)  # the hashes are right


def double_one_scale(faulty: Faulty) -> None:
    def change(scale):
        scale = scale.copy()
        scale[scale.argmax()] *= 2
        return scale

    faulty.scale(f"{IN}.scale", change)


def swap_two_scales(faulty: Faulty) -> None:
    def change(scale):
        scale = scale.copy()
        low, high = scale.argmin(), scale.argmax()
        scale[[low, high]] = scale[[high, low]]
        return scale

    faulty.scale(f"{IN}.scale", change)


def negate_a_layer(faulty: Faulty) -> None:
    codes = faulty.array(f"{OUT}.int8")
    codes[...] = -np.array(codes)


def shuffle_a_block(faulty: Faulty) -> None:
    codes = faulty.array(f"{OUT}.int8")
    codes[:16] = np.random.default_rng(0).permutation(np.array(codes[:16]))


def another_layer(faulty: Faulty) -> None:
    faulty.array(f"{OUT}.int8")[...] = np.array(faulty.array(f"{OUT.replace('1', '2')}.int8"))


def no_hadamard(faulty: Faulty) -> None:
    name = next(name for name in faulty.held if "hadamard" in name)
    faulty.scale(name, np.zeros_like)


FAULTS = (
    double_one_scale,
    swap_two_scales,
    negate_a_layer,
    shuffle_a_block,
    another_layer,
    no_hadamard,
)


def test_a_sound_bundle_passes(quantized, tmp_path):
    assert verify(Faulty(quantized, tmp_path / "same").closed(), save=False).ok


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_fails(quantized, tmp_path, fault):
    faulty = Faulty(quantized, tmp_path / "faulty")
    before = faulty.path.read_bytes(), faulty.bundle.graph_path("step").read_bytes()
    fault(faulty)
    bundle = faulty.closed()
    after = faulty.path.read_bytes(), bundle.graph_path("step").read_bytes()
    assert after != before
    report = verify(bundle, checks=QUICK, save=False)
    worst = {check.name: (check.worst, check.tolerance) for check in report.checks}
    assert not report.ok, worst


def test_the_floor_of_a_last_logit_is_that_of_the_positions_before_it():
    """One position is one draw of the error: the gate is made from the largest of several."""
    rng = np.random.default_rng(1)
    logits, state = rng.normal(size=(1, 1, 50)), rng.normal(size=(1, 4))
    case = Case("drift", np.zeros((1, 9), np.int64), logits, {"past_ssm.0": state})
    close = Simulation(case, logits * (1 + 1e-3), {"past_ssm.0": state * (1 + 1e-3)})
    few = Simulation(case, close.logits, close.states, {"nmse": 1e-4, "element": 1e-9})
    alone, nearby = close.errors(), few.errors()
    assert alone["logits"]["nmse"] == pytest.approx(1e-6)
    assert nearby["logits"] == {"nmse": 1e-4, "element": alone["logits"]["element"]}
    assert nearby["past_ssm.0"] == alone["past_ssm.0"]


def test_positions_before_the_last_are_looked_at_where_the_truth_has_one(bundle_of, family):
    """Their errors are those of the whole prefill graph with the same edit."""

    def rounder(model) -> bool:
        """A coarse final norm changes the logits and no state."""
        found = [v for n, v in model.graph.initializers.items() if "norm_f" in n]
        for value in found:
            value.const_value = ir.tensor(np.round(value.const_value.numpy() * 4 + 0.3) / 4)
        return bool(found)

    source = Bundle.open(bundle_of(family, lowering="native"))
    ids = np.random.default_rng(2).integers(0, source.manifest.sizes["V"], (1, 9))
    want, got = whole_logits(source, ids), whole_logits(source, ids, rounder)
    case = Case("drift", ids, want[:, -1:])
    found = floors._simulate(source, case, rounder, SILENT)
    np.testing.assert_allclose(found.logits, got[:, -1:], rtol=1e-4, atol=1e-5)
    worst = max(np.square(got - want).sum(-1)[0] / np.square(want).sum(-1)[0])
    assert found.nearby["nmse"] == pytest.approx(worst, rel=1e-3)
    assert floors._simulate(source, Case("prefill", ids, want), rounder, SILENT).nearby == {}


@pytest.fixture(scope="module")
def weight_only(bundle_of, family, tmp_path_factory):
    """``w8a16`` of a tiny model, with the lowering that packs weights anew."""
    patch = pytest.MonkeyPatch()
    patch.setattr("ssm_export.quantization.drift.STEPS", (16,))
    source = Bundle.open(bundle_of(family, lowering="ort"))
    made = tmp_path_factory.mktemp("weights") / "bundle"
    quantize(source, made, QuantizeOptions("w8a16", sensitivity=False))
    patch.undo()
    return Bundle.open(made)


def test_one_scale_that_is_off_by_a_tenth_fails(weight_only, tmp_path):
    """No runtime's rounding of inputs hides it: the codes are computed as they are written."""

    def stretched(scale):
        scale = scale.copy()
        scale[0] *= 1.1
        return scale

    faulty = Faulty(weight_only, tmp_path / "faulty")
    faulty.scale(f"{OUT}.scale", stretched)
    bundle = faulty.closed()
    report = verify(bundle, lowering="canonical", checks=("codes",), save=False)
    assert not report.ok
    assert "as written" in report.checks[0].where


def test_a_fault_in_packed_weights_alone_fails(weight_only, tmp_path):
    """They have a file of their own; the codes that they were made of are right."""
    assert verify(weight_only, lowering="ort", checks=("codes",), save=False).ok
    bundle = Faulty(weight_only, tmp_path / "faulty").bundle
    graph = onnx.load(bundle.graph_path("prefill", "ort"), load_external_data=False)
    name = f"{IN}.int8.nbits"
    offset = next(
        int(entry.value)
        for tensor in graph.graph.initializer
        for entry in tensor.external_data
        if tensor.name == name and entry.key == "offset"
    )
    entry = bundle.manifest.packed_weights["ort"]
    content = bytearray((bundle.path / entry.path).read_bytes())
    content[offset + 3] ^= 1
    (bundle.path / entry.path).write_bytes(content)
    bundle.manifest.packed_weights["ort"] = bundle.entry(entry.path)
    bundle.save()
    report = verify(Bundle.open(bundle.path), lowering="ort", checks=("codes",), save=False)
    assert not report.ok
    assert name in report.checks[0].where
