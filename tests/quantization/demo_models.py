"""The trained demo models as bundles, text for them, and weights of them edited by a test."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from families import ROOT
from safetensors.numpy import load_file, save_file

from ssm_export.bundle import Bundle

SAMPLE = ROOT / "samples" / "train_demo"
DEMOS = ("mamba", "mamba2")


@cache
def text(part: str) -> bytes:
    """``training`` text, or ``held_out`` text that training never saw."""
    sys.path.insert(0, str(SAMPLE))
    try:
        import data
    finally:
        sys.path.remove(str(SAMPLE))
    return bytes({"training": data.training_text, "held_out": data.held_out_text}[part]())


def windows(part: str, rows: int, tokens: int) -> np.ndarray:
    """(rows,tokens) int64 byte ids, spread over the text."""
    content = np.frombuffer(text(part), np.uint8)
    starts = np.linspace(0, len(content) - tokens - 1, rows).astype(int)
    return np.stack([content[at : at + tokens] for at in starts]).astype(np.int64)


def checkpoint(family: str) -> dict[str, np.ndarray]:
    """The weights of a demo model, float32."""
    held = load_file(SAMPLE / f"{family}-bytes" / "model.safetensors")
    return {name: weight.astype(np.float32) for name, weight in held.items()}


def export_demo(family: str, folder: Path, weights: Mapping[str, np.ndarray] | None = None) -> Path:
    """A float bundle of a demo model, or of other weights in its place."""
    from ssm_export.exporter import ExportOptions, export

    source = SAMPLE / f"{family}-bytes"
    if weights is not None:
        edited = folder.parent / f"{folder.name}-checkpoint"
        shutil.copytree(source, edited)
        config = json.loads((edited / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = config["torch_dtype"] = "float32"
        (edited / "config.json").write_text(json.dumps(config), encoding="utf-8")
        whole = {name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}
        save_file(whole, edited / "model.safetensors", metadata={"format": "pt"})
        source = edited
    export(source, folder, ExportOptions(parity="quick", lowering="ort", verify=False))
    return folder


def tapped(bundle: Bundle, rows: np.ndarray, ends: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Values of the float model whose names end so, (tokens,channels), by name."""
    from ssm_export.quantization.stream import LayerStream

    stream = LayerStream(bundle, rows)
    parts: dict[str, list[np.ndarray]] = {}
    known = [str(name) for name in stream.pieces._values if str(name).endswith(ends)]

    def inside(piece) -> list[str]:
        return [name for name in known if f".layers.{piece.index}." in name]

    def keep(name: str, array: np.ndarray) -> None:
        parts.setdefault(name, []).append(array)

    for _ in stream.walk(taps=inside, on_tap=keep):
        pass
    whole = {name: np.concatenate(found) for name, found in parts.items()}
    return {name: array.reshape(*array.shape[:2], -1) for name, array in whole.items()}
