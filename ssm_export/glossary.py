"""The letters that shapes are written in, everywhere in this package.

A docstring that says ``u (B,T,D)`` means these letters and no others.
"""

from __future__ import annotations

from typing import Final

LETTERS: Final[dict[str, str]] = {
    "B": "batch",
    "T": "time: tokens or samples of one call",
    "D": "channels (inner width of the mixer)",
    "H": "heads",
    "P": "head width",
    "N": "state size per channel",
    "G": "groups that share B and C",
    "K": "taps of the short convolution",
    "Q": "chunk: tokens that are computed in parallel",
    "R": "rank of the dt projection",
    "M": "model width (residual stream)",
    "L": "layers",
    "V": "vocabulary",
}
"""Letter to meaning."""

BATCH_AXIS: Final = "batch"
"""Name of the symbolic batch axis in every graph."""
TIME_AXIS: Final = "time"
"""Name of the symbolic time axis of prefill graphs."""
