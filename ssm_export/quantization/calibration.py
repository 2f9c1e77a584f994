"""Statistics of activations, and codes that need them, taken while a float model runs.

The model runs layer by layer; after a layer its statistics and codes are final and are kept in a
work folder, so an interrupted run goes on where it stopped, with the same result to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import disk_errors, write_atomically
from ssm_export.errors import SsmExportError
from ssm_export.quantization.clipping import Histogram
from ssm_export.quantization.pieces import Piece
from ssm_export.quantization.rotation import block_size, rotate
from ssm_export.quantization.stream import LayerStream

if TYPE_CHECKING:
    from ssm_export.quantization.plan import WeightKey
    from ssm_export.quantization.sites import Sites
    from ssm_export.quantization.tensors import Tensors

FILE: Final = "calibration/statistics.npz"
"""Where the statistics lie in a quantized bundle."""
UNREADABLE: Final = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for an ``.npz`` file that is no such file, or half of one."""


@dataclass(frozen=True, eq=False)
class ValueStatistics:
    """What was seen of one activation.

    Attributes:
        histogram: of its magnitudes.
        channels: the largest magnitude at each place of its axes after batch and time.
    """

    histogram: Histogram
    channels: np.ndarray


@dataclass
class Statistics:
    """What was seen of every activation that a recipe may quantize.

    Attributes:
        source: where the rows came from, for people.
        rows_sha256: of the token ids.
        weights_sha256: of the float bundle's weights file.
        tokens: how many were run.
        values: value name, with ``@b`` where it was rotated in blocks of b, to what was seen.
    """

    source: str
    rows_sha256: str
    weights_sha256: str
    tokens: int
    values: dict[str, ValueStatistics] = field(default_factory=dict)

    def of(self, value: str, rotate: int = 0) -> ValueStatistics:
        """The statistics of a value, rotated in blocks where ``rotate`` is not 0."""
        return self.values[_key(value, rotate)]

    def has(self, wanted: Iterable[tuple[str, int]]) -> bool:
        """Whether every (value, rotation) is there."""
        return all(_key(*item) in self.values for item in wanted)

    def save(self, path: Path) -> None:
        """Write them as ``.npz``."""
        facts = {
            "source": self.source,
            "rows_sha256": self.rows_sha256,
            "weights_sha256": self.weights_sha256,
            "tokens": self.tokens,
        }
        arrays = _pack(self.values)
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(path.parent):
            np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # keywords are arrays

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read them; ``BAD_CALIBRATION`` where the file holds none."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
            facts = json.loads(arrays.pop("facts").tobytes())
            return cls(**facts, values=_unpack(arrays))
        except (*UNREADABLE, TypeError) as error:
            raise SsmExportError(
                errors.BAD_CALIBRATION,
                "holds no statistics of activations",
                where=str(path),
                fix="give text, token ids, or a bundle that ssm-export quantize made",
            ) from error


class Work:
    """A folder for what is final after each layer, tied to what it is made from.

    Args:
        folder: where; made when something is saved.
        identity: everything that its content depends on; a folder of another identity is emptied.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        text = json.dumps(identity, sort_keys=True)
        self._identity = hashlib.sha256(text.encode()).hexdigest()
        marker = folder / "identity"
        if folder.exists() and (
            not marker.is_file() or marker.read_text(encoding="utf-8") != self._identity
        ):
            shutil.rmtree(folder)

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """What was saved under a name; None where there is nothing, or half of it."""
        path = self.folder / f"{name}.npz"
        with (
            contextlib.suppress(*UNREADABLE),
            np.load(path, allow_pickle=False) as stored,
        ):
            return dict(stored)
        return None

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under a name, all or nothing."""
        with disk_errors(self.folder.parent):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "identity", self._identity)
            partial = self.folder / f".{name}.part.npz"
            np.savez(partial, **arrays)  # type: ignore[arg-type]  # keywords are arrays
            os.replace(partial, self.folder / f"{name}.npz")

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def every_value(sites: Sites, needed: Iterable[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """(value, rotation, layer) of all that recipes may ask for: inputs of scans, and inputs of
    linear layers as they are and rotated in the block that recipes take by default.

    Args:
        sites: of the model.
        needed: (value, rotation) that have to be among them.
    """
    found = {(site.value, 0): site.layer for site in sites.scans}
    layers: dict[str, int] = {}
    for site in sites.weights:
        if site.product is not None and not site.is_vocabulary:
            layers[site.product.activation] = site.layer
            found[site.product.activation, 0] = site.layer
            found[site.product.activation, block_size(site.shape[0])] = site.layer
    found |= {(value, turned): layers[value] for value, turned in needed if turned}
    return [(value, turned, layer) for (value, turned), layer in sorted(found.items())]


def collect(
    stream: LayerStream,
    statistics: Statistics,
    wanted: Iterable[tuple[str, int, int]],
    rounded: Iterable[WeightKey],
    tensors: Tensors,
    work: Work,
) -> None:
    """Run the float model once and take what is asked for.

    Args:
        stream: the float model on the calibration rows.
        statistics: filled in.
        wanted: (value, rotation, layer) of every activation.
        rounded: weights whose codes need second moments of their inputs.
        tensors: reads weights, and is given the codes.
        work: keeps what is final after each layer.
    """
    by_layer: dict[int, list[tuple[str, int]]] = {}
    for value, turned, layer in wanted:
        by_layer.setdefault(layer, []).append((value, turned))
    codes: dict[int, list[WeightKey]] = {}
    for key in rounded:
        codes.setdefault(tensors.site(key.site).layer, []).append(key)
    done = {}
    for layer in {*by_layer, *codes}:
        found = work.load(f"layer_{layer:03}")
        if found is not None:
            done[layer] = found
    if len(done) < len({*by_layer, *codes}):
        _run(stream, by_layer, codes, tensors, work, done)
    for found in done.values():
        statistics.values |= _unpack(_under("statistics/", found))
        tensors.restore(_under("codes/", found))


def _run(
    stream: LayerStream,
    by_layer: Mapping[int, list[tuple[str, int]]],
    codes: Mapping[int, list[WeightKey]],
    tensors: Tensors,
    work: Work,
    done: dict[int, dict[str, np.ndarray]],
) -> None:
    """Walk through the layers; what a layer gives is saved before the next begins."""
    seen: dict[str, ValueStatistics] = {}
    moments: dict[str, np.ndarray] = {}
    now: dict[str, Any] = {"wanted": [], "moments": set()}

    def inputs_of(layer: int) -> set[str]:
        return {tensors.input_of(key.site) for key in codes.get(layer, ())}

    def taps(piece: Piece) -> list[str]:
        if piece.index in done:
            return []
        now["wanted"] = by_layer.get(piece.index, [])
        now["moments"] = inputs_of(piece.index)
        return sorted({value for value, _ in now["wanted"]} | now["moments"])

    def on_tap(name: str, array: np.ndarray) -> None:
        for value, turned in now["wanted"]:
            if value == name:
                _add(seen, _key(value, turned), rotate(array, turned) if turned else array)
        if name in now["moments"]:
            flat = array.reshape(-1, array.shape[-1])
            moment = (flat.T @ flat).astype(np.float64)
            moments[name] = moments[name] + moment if name in moments else moment

    for stage in stream.walk(taps=taps, on_tap=on_tap, what="calibrating"):
        layer = stage.piece.index
        if layer in done or not (layer in by_layer or layer in codes):
            continue
        found = {f"statistics/{name}": array for name, array in _pack(seen).items()}
        for key in codes.get(layer, ()):
            moment = moments[tensors.input_of(key.site)] / stream.rows.size
            made = tensors.round_with(key, moment)
            found |= {f"codes/{name}": a for name, a in tensors.packed(key, made).items()}
        work.save(f"layer_{layer:03}", found)
        done[layer] = found
        seen.clear()
        moments.clear()


def _add(seen: dict[str, ValueStatistics], key: str, array: np.ndarray) -> None:
    largest = np.abs(array).max(axis=(0, 1))
    if not np.isfinite(largest).all():
        raise SsmExportError(
            errors.BAD_CALIBRATION,
            "the float model gives NaN or Inf on the calibration data",
            where=key,
            fix="check the data, or verify the float bundle",
        )
    if key not in seen:
        seen[key] = ValueStatistics(Histogram(), largest)
    else:
        np.maximum(seen[key].channels, largest, out=seen[key].channels)
    seen[key].histogram.add(array)


def _key(value: str, rotate: int) -> str:
    return f"{value}@{rotate}" if rotate else value


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


_PART: Final = "|"


def _pack(values: Mapping[str, ValueStatistics]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, found in values.items():
        arrays[f"{name}{_PART}channels"] = found.channels
        for part, array in found.histogram.to_arrays().items():
            arrays[f"{name}{_PART}histogram.{part}"] = array
    return arrays


def _unpack(arrays: Mapping[str, np.ndarray]) -> dict[str, ValueStatistics]:
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        value, _, part = name.rpartition(_PART)
        parts.setdefault(value, {})[part] = array
    return {
        value: ValueStatistics(
            Histogram.from_arrays(_under("histogram.", found)), found["channels"]
        )
        for value, found in parts.items()
    }
