"""A copy of a bundle with another type of state, made without the quantizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnx_ir as ir

from ssm_export.bundle import Bundle
from ssm_export.lowering import lower
from ssm_export.quantization.state import retype_states

LOWERINGS = ("native", "ort")


def retyped_bundle(source: Path, folder: Path, dtype: str, block: int = 0) -> Bundle:
    """Copy a bundle, retype its canonical graphs, lower them again, and rewrite its manifest."""
    shutil.copytree(source, folder)
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    states = manifest.states
    for form in ("step", "prefill"):
        model = ir.load(bundle.graph_path(form, "canonical"))
        manifest.states = retype_states(model, states, dtype, block=block)
        graphs = {"canonical": model}
        graphs |= {name: lower(model, name).model for name in LOWERINGS}
        for name, graph in graphs.items():
            path = f"onnx/{form}.onnx" if name == "canonical" else f"onnx/{form}.{name}.onnx"
            ir.save(graph, folder / path)
            onnx.checker.check_model(str(folder / path), full_check=True)
            manifest.graphs[form][name] = bundle.entry(path)
    manifest.state_dtype = dtype
    bundle.save()
    return Bundle.open(folder)
