"""The outliers that break transformers' recipes on scans, planted into a demo model.

Everything is planted where the float model does not notice: it predicts text as before, and what
is lost afterwards is lost by rounding.

- Rare huge x: in a few channels the bias of the short convolution is lowered until x is nonzero at
  one calibration token only, and there it is hundreds of times any other value. The channel's gate
  is shut (its z is 0), and what it gave is gone for good, so the channels are the least important.
- Broad x (Mamba-2, in other layers): channels, shut likewise, in which x is 100 times the others at
  every token. No percentile helps against those.
- Channels of y a hundred times the median: the gated norm's weight times s (Mamba-2, exact), or z
  times s (Mamba-1, where silu(s·z)/s is nearly silu(z) for |z| well above 0); out_proj over s.
"""

from __future__ import annotations

import numpy as np
from demo_models import checkpoint, tapped, windows

from ssm_export.bundle import Bundle

TIMES = 100.0
"""A channel of y is this many times the median channel, in RMS."""
RARE = (3000.0, 1000.0, 300.0, 80.0, 80.0, 80.0)
"""Rare values of x over the largest value of a usual channel. (In Mamba-2 more sizes than a head
has clusters, so sorting and clustering alone puts usual channels together with those of 80.)"""
SPIKED = {"mamba": (0, 1, 2, 3, 4), "mamba2": (0, 2, 4)}
BROAD = {"mamba": (), "mamba2": (1, 3)}
HEADS, HEAD_WIDTH = (0, 2, 5, 7), 32
EACH = 3
CHANNELS = 320
ROWS = (16, 512)


def rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt((values.astype(np.float64) ** 2).mean(axis=0))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-np.clip(x, -60, 60)))


class Layer:
    """One layer's weights and what flows through it, (tokens,channels)."""

    def __init__(self, family: str, index: int, weights: dict, seen: dict) -> None:
        self.family, self.weights = family, weights
        self.module = f"backbone.layers.{index}.mixer"
        first, second = ("", ".1") if family == "mamba" else (".1", "")
        before = seen[f"{self.module}.in_proj/Split{first}"][..., :CHANNELS]
        self.z = self.flat(seen[f"{self.module}.in_proj/Split{second}"])
        self.before_silu = self.flat(self.convolved(before))
        self.x = silu(self.before_silu)
        y = "/SelectiveScan" if family == "mamba" else ".norm/Mul"
        self.y = self.flat(seen[self.module + y])
        self.usual = float(np.median(np.abs(self.x).max(axis=0)))
        self.used: set[int] = set()

    @staticmethod
    def flat(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, values.shape[-1])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.weights[f"{self.module}.{name}"]

    def convolved(self, before: np.ndarray) -> np.ndarray:
        taps = self["conv1d.weight"][:CHANNELS, 0]
        padded = np.pad(before, ((0, 0), (taps.shape[1] - 1, 0), (0, 0)))
        parts = [padded[:, k : k + before.shape[1]] * taps[:, k] for k in range(taps.shape[1])]
        return sum(parts) + self["conv1d.bias"][:CHANNELS]

    def take(self, count: int, cost: np.ndarray, allowed: np.ndarray) -> list[int]:
        """The cheapest free channels."""
        free = [int(c) for c in np.argsort(cost) if allowed[c] and int(c) not in self.used]
        self.used |= set(free[:count])
        return free[:count]

    def importance(self) -> np.ndarray:
        found = rms(self.y) * np.linalg.norm(self["out_proj.weight"], axis=0)
        found = found / np.median(found)
        if self.family == "mamba":
            read = rms(self.x) * np.linalg.norm(self["x_proj.weight"], axis=0)
            found = found + read / np.median(read)
        return found

    def shut(self, channel: int) -> None:
        """Nothing of a channel reaches the rest of the model: its gate is silu(0) = 0."""
        if self.family == "mamba":
            self["in_proj.weight"][CHANNELS + channel] = 0
            self["x_proj.weight"][:, channel] = 0
        else:
            self["in_proj.weight"][channel] = 0

    def spike(self, channel: int, times: float) -> None:
        """Make x of a channel nonzero at one token, and there ``times`` the usual largest."""
        ordered = np.sort(self.before_silu[:, channel])
        threshold = (ordered[-1] + ordered[-2]) / 2
        factor = times * self.usual / (ordered[-1] - threshold)
        self["conv1d.weight"][channel] *= factor
        bias = self["conv1d.bias"]
        bias[channel] = factor * (bias[channel] - threshold)
        self.shut(channel)

    def broaden(self, channel: int) -> None:
        factor = TIMES * self.usual / np.abs(self.x[:, channel]).max()
        self["conv1d.weight"][channel] *= factor
        self["conv1d.bias"][channel] *= factor
        self.shut(channel)

    def raise_outputs(self, count: int) -> list[int]:
        """Make channels of y ``TIMES`` the median; those that peak least, and cost least."""
        sizes, norms = rms(self.y), np.linalg.norm(self["out_proj.weight"], axis=0)
        factor = TIMES * np.median(sizes) / sizes
        gate = silu(self.z)
        cost = sizes * norms
        if self.family == "mamba":
            error = silu(self.z * factor) / factor - gate
            ungated = self.y / np.where(np.abs(gate) > 1e-6, gate, 1e-6)
            cost = rms(error * ungated) * norms
        peak = np.abs(self.y).max(axis=0) / sizes
        chosen = self.take(count, cost, peak < np.quantile(peak, 0.25))
        for channel in chosen:
            if self.family == "mamba":
                self["in_proj.weight"][CHANNELS + channel] *= factor[channel]
            else:
                self["norm.weight"][channel] *= factor[channel]
            self["out_proj.weight"][:, channel] /= factor[channel]
        return chosen


def plant_outliers(bundle: Bundle) -> dict[str, np.ndarray]:
    """Weights of a demo model with outliers; ``bundle`` is the demo model as it is."""
    family = bundle.manifest.family
    weights = checkpoint(family)
    ends = ("in_proj/Split", "in_proj/Split.1", "mixer/SelectiveScan", "mixer.norm/Mul")
    seen = tapped(bundle, windows("training", *ROWS), ends)
    for index in range(5):
        layer = Layer(family, index, weights, seen)
        ordered = np.sort(layer.before_silu, axis=0)
        alone = ordered[-1] - ordered[-2] > 1e-3 * np.ptp(ordered, axis=0)
        cost, everywhere = layer.importance(), np.ones(CHANNELS, bool)
        if index in BROAD[family]:
            for channel in layer.take(EACH, cost, everywhere):
                layer.broaden(channel)
        if index in SPIKED[family]:
            heads = np.arange(CHANNELS) // HEAD_WIDTH
            places = [heads == head for head in HEADS] if family == "mamba2" else [everywhere]
            for place in places:
                for channel, times in zip(
                    layer.take(len(RARE), cost, place & alone), RARE, strict=True
                ):
                    layer.spike(channel, times)
        layer.raise_outputs(EACH)
    return weights
