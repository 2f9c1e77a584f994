"""The amplitude of an activation, from statistics that are streamed: min–max, percentile or MSE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.quantization.schemes import SCHEMES, Scheme

_BINS: Final = 2048
_PIECE: Final = 1 << 18
_CANDIDATES: Final = 256


@dataclass
class Histogram:
    """Counts of |x| in equal bins over (0, reach]; zeros are in the first bin.

    ``reach`` is a power of two and doubles when a value exceeds it, and bins then merge in pairs:
    the counts are those of a histogram that had the last range from the start, in whatever order
    and pieces the values came.

    Attributes:
        counts: int64 (2048,).
        reach: upper end of the last bin; 0 before any value other than 0 was seen.
        largest: the largest |x|, exactly.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    reach: float = 0.0
    largest: float = 0.0

    @property
    def total(self) -> int:
        """Values seen."""
        return int(self.counts.sum())

    def add(self, x: np.ndarray) -> None:
        """Counts the values of an array of any shape; NOT_FINITE for NaN and Inf."""
        flat = np.asarray(x).reshape(-1)
        # Dividing by a power of two is exact in either type, short of subnormal numbers.
        wide = np.float64 if flat.dtype.itemsize > 4 or self.reach < 1e-30 else np.float32
        for start in range(0, flat.size, _PIECE):
            magnitude = np.abs(flat[start : start + _PIECE].astype(wide))
            top = float(magnitude.max())
            if not np.isfinite(top):
                raise SsmExportError(
                    errors.NOT_FINITE,
                    "an activation of the calibration data is NaN or Inf",
                    fix="calibrate with data on which the float model stays finite",
                )
            self._grow(top)
            self.largest = max(self.largest, top)
            if self.reach == 0.0:
                self.counts[0] += magnitude.size
                continue
            magnitude *= _BINS / self.reach
            index = np.maximum(np.ceil(magnitude, out=magnitude).astype(np.int64) - 1, 0)
            self.counts += np.bincount(index, minlength=_BINS)

    def merge(self, other: Histogram) -> None:
        """Takes the counts of another one over, as if its values had been added here."""
        copy = Histogram(other.counts.copy(), other.reach, other.largest)
        self._grow(copy.reach)
        copy._grow(self.reach)
        self.counts += copy.counts
        self.largest = max(self.largest, copy.largest)

    def minmax(self) -> float:
        """The largest |x| seen; errors as ``percentile``."""
        self._needs_values()
        return self.largest

    def percentile(self, p: float) -> float:
        """The amplitude that ``p`` % of the |x| do not exceed; linear within a bin.

        At most one bin (reach/2048) from the p-th percentile of the values. BAD_CALIBRATION if no
        value was seen; BAD_OPTION for p outside 0…100.
        """
        self._needs_values()
        if not 0 <= p <= 100:
            raise SsmExportError(
                errors.BAD_OPTION, f"{p} is no percentile", fix="take a number from 0 to 100"
            )
        wanted = p / 100 * self.total
        upto = np.cumsum(self.counts)
        at = int(np.searchsorted(upto, wanted))
        if at >= _BINS:
            return self.largest
        inside = 0.0
        if self.counts[at]:
            inside = (wanted - float(upto[at] - self.counts[at])) / float(self.counts[at])
        return min((at + inside) * self.reach / _BINS, self.largest)

    def mse_amplitude(self, scheme: str | Scheme) -> float:
        """The clipping amplitude with the least expected squared error of rounding.

        Values are taken as uniform within their bin, and the squared error of each bin is
        integrated exactly over the codes of ``scheme`` (int8, int4 or fp8) at scale amplitude over
        maximum. Tries 256 amplitudes in equal ratios from one bin to the largest value.
        """
        self._needs_values()
        if self.largest == 0.0:
            return 0.0
        scheme = SCHEMES[scheme] if isinstance(scheme, str) else scheme
        last = int(np.flatnonzero(self.counts)[-1]) + 1
        edges = np.arange(last + 1) * (self.reach / _BINS)
        edges[-1] = self.largest
        width = np.diff(edges)
        density = np.divide(self.counts[:last], width, out=np.zeros(last), where=width > 0)
        levels = _levels(scheme) / scheme.maximum
        lowest = min(self.reach / _BINS, self.largest)
        candidates = np.geomspace(self.largest, lowest, _CANDIDATES)
        losses = [
            float(density @ np.diff(_integrated_error(edges, levels * amplitude)))
            for amplitude in candidates
        ]
        return float(candidates[int(np.argmin(losses))])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Its content as arrays, for storage: counts, reach, largest."""
        return {
            "counts": self.counts.copy(),
            "reach": np.array(self.reach),
            "largest": np.array(self.largest),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Histogram:
        """The histogram that ``to_arrays`` described."""
        counts = np.array(arrays["counts"], np.int64)
        return cls(counts, float(arrays["reach"]), float(arrays["largest"]))

    def _grow(self, top: float) -> None:
        if top <= self.reach or top == 0.0:
            return
        mantissa, exponent = np.frexp(top)
        reach = float(np.ldexp(1.0, int(exponent) - (mantissa == 0.5)))
        if self.reach == 0.0:
            self.reach = reach
            return
        while self.reach < reach:
            half = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([half, np.zeros(_BINS // 2, np.int64)])
            self.reach *= 2
            if not half[1:].any():  # everything is in the first bin, where it stays
                self.reach = reach

    def _needs_values(self) -> None:
        if not self.counts.any():
            raise SsmExportError(
                errors.BAD_CALIBRATION,
                "no value was seen, so there is no amplitude",
                fix="calibrate with at least one sequence",
            )


def _levels(scheme: Scheme) -> np.ndarray:
    """Magnitudes of its codes, ascending from 0, float64."""
    if scheme.integer:
        return np.arange(scheme.maximum + 1)
    codes = np.arange(1 << (scheme.bits - 1), dtype=np.uint8).view(scheme.code_dtype)
    magnitudes = codes.astype(np.float64)
    return magnitudes[np.isfinite(magnitudes)]


def _integrated_error(t: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """∫₀ᵗ (v − nearest level of v)² dv in closed form, for ascending levels that begin with 0."""
    ends = (levels[1:] + levels[:-1]) / 2
    begins = np.concatenate([[0.0], ends])
    whole = ((ends - levels[:-1]) ** 3 - (begins[:-1] - levels[:-1]) ** 3) / 3
    before = np.concatenate([[0.0], np.cumsum(whole)])
    at = np.searchsorted(ends, t)
    return before[at] + ((t - levels[at]) ** 3 - (begins[at] - levels[at]) ** 3) / 3
