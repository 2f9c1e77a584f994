"""What quantizing gained and cost, as JSON and as tables that a person can decide from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ssm_export import errors, prediction
from ssm_export.errors import SsmExportError
from ssm_export.quantization.evaluation import Quality, json_number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.quantization.drift import DriftNotRun, DriftPoint
    from ssm_export.quantization.mixed import MixedChoice
    from ssm_export.quantization.sensitivity import Sensitivity
    from ssm_export.targets import Target


def decode_ceiling(weight_bytes_per_token: float, state_bytes: float, target: Target) -> float:
    """Tokens per second that memory allows when one row decodes: BW / (W + 2·state + 2·conv).

    Args:
        weight_bytes_per_token: W, of :func:`ssm_export.prediction.weights_read`.
        state_bytes: of every state of one row, scan and convolution; each is read and written.
        target: a device with a known bandwidth.

    Raises:
        SsmExportError: ``BAD_OPTION`` for a target without one.
    """
    if target.bandwidth_gb_s is None:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"the target {target.name} is a class of devices whose bandwidths differ",
            where="--target",
            fix="ssm-export list targets; take the one of your board or card",
        )
    return prediction.decode_ceiling(weight_bytes_per_token, state_bytes, target.bandwidth_gb_s)


@dataclass(frozen=True)
class Footprint:
    """Sizes of a bundle, in bytes.

    Attributes:
        weights_file: the file of weights that every graph points into.
        read_per_token: weights that decoding one token reads.
        states_per_row: of every state of one row.
    """

    weights_file: int
    read_per_token: int
    states_per_row: int


@dataclass(frozen=True)
class Ceiling:
    """A prediction from bandwidth alone; nothing was run on the device.

    Attributes:
        target: name of the device.
        bandwidth_gb_s: of its memory.
        before, after: tokens per second at batch 1, of the source and of the quantized bundle.
    """

    target: str
    bandwidth_gb_s: float
    before: float
    after: float


@dataclass(frozen=True)
class AblationRow:
    """The recipe, or the recipe with something left out.

    Attributes:
        variant: such as ``recipe``, ``without rotation`` or ``plain``.
        quality: of it.
    """

    variant: str
    quality: Quality


@dataclass(frozen=True)
class NotRun:
    """Something the report could have held, and why it does not."""

    what: str
    why: str


@dataclass(frozen=True)
class QuantizeReport:
    """Everything that one run of quantize found.

    Attributes:
        bundle: folder that was made.
        source: folder of the float bundle.
        recipe: as :meth:`~ssm_export.quantization.recipe.Recipe.as_json` gives it.
        before, after: sizes of both.
        ceiling: expected decode speed; None where no target with a bandwidth is known.
        evaluated_on: where the held-out rows came from, and how many there are.
        float_quality, quality: of the float model and of the quantized one, simulated in fp32.
        step_quality: of the shipped step graph in a runner, on some of the rows; None when it was
            not run.
        snr_db: after the embedding, after each layer, and of the logits.
        drift: what was compared, such as ``int8 state``, to how far it went over many steps.
        sensitivities: each tensor alone, worst first.
        ablation: what the steps of the recipe gained.
        mixed: the formats that were chosen; None for a recipe without ``mixed``.
        limit_bits: bits per byte (per token where the rows are no text) that the recipe may lose.
        notes: what had to be done otherwise than the recipe says.
        not_run: what is not in the report, and why.
        seconds: wall time.
    """

    bundle: str
    source: str
    recipe: dict[str, Any]
    before: Footprint
    after: Footprint
    evaluated_on: str
    float_quality: Quality
    quality: Quality
    step_quality: Quality | None = None
    ceiling: Ceiling | None = None
    snr_db: tuple[float, ...] = ()
    drift: Mapping[str, Sequence[DriftPoint | DriftNotRun]] = field(default_factory=dict)
    sensitivities: tuple[Sensitivity, ...] = ()
    ablation: tuple[AblationRow, ...] = ()
    mixed: MixedChoice | None = None
    limit_bits: float | None = None
    notes: tuple[str, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    seconds: float = 0.0
    files: dict[str, str] = field(default_factory=dict)

    @property
    def lost_bits(self) -> float:
        """Bits per byte that were lost, the worse of simulation and step graph; per token where
        the rows are no text. The step graph runs on few tokens, so its divergence counts, which
        does not depend on the tokens that happen to come next."""
        lost = [lost_bits_of(self.quality)]
        if self.step_quality is not None:
            lost.append(self.step_quality.kl_bits / _bytes_per_token(self.step_quality))
        return math.nan if any(map(math.isnan, lost)) else max(lost)

    @property
    def ok(self) -> bool:
        """Whether no more was lost than the recipe allows; NaN is more."""
        if self.limit_bits is None:
            return math.isfinite(self.lost_bits)
        return self.lost_bits <= self.limit_bits

    def as_json(self) -> dict[str, Any]:
        """The members of the ``ssm-export/quantize@1`` document; not-finite numbers are null."""
        steps = self.step_quality
        return {
            "ok": self.ok,
            "bundle": self.bundle,
            "source": self.source,
            "recipe": self.recipe,
            "size": {"before": asdict(self.before), "after": asdict(self.after)},
            "decode_ceiling": None
            if self.ceiling is None
            else {"kind": "prediction", "batch": 1, **asdict(self.ceiling)},
            "evaluated_on": self.evaluated_on,
            "quality": {
                "float": self.float_quality.as_json(),
                "quantized": self.quality.as_json(),
                "step_graph": None if steps is None else steps.as_json(),
            },
            "lost_bits": json_number(self.lost_bits),
            "limit_bits": self.limit_bits,
            "snr_db": [json_number(value) for value in self.snr_db],
            "drift": {
                name: [{k: json_number(v) for k, v in vars(point).items()} for point in points]
                for name, points in self.drift.items()
            },
            "sensitivities": [sensitivity.as_json() for sensitivity in self.sensitivities],
            "ablation": [
                {"variant": row.variant, **row.quality.as_json()} for row in self.ablation
            ],
            "mixed": None if self.mixed is None else self.mixed.as_json(),
            "notes": list(self.notes),
            "not_run": [asdict(item) for item in self.not_run],
            "seconds": round(self.seconds, 3),
            "files": self.files,
        }

    def table(self) -> RenderableType:
        """The report for a terminal."""
        from ssm_export.quantization.report_tables import tables_of

        return tables_of(self)


def lost_bits_of(quality: Quality) -> float:
    """Bits per byte that were lost; where the rows are no text, the KL divergence per token, which
    is what would be lost on text that the float model writes."""
    per_byte = quality.lost_bits_per_byte
    return quality.kl_bits if per_byte is None else per_byte


def _bytes_per_token(quality: Quality) -> float:
    """Bytes of text per token of its rows; 1 where they are no text."""
    if quality.bits_per_byte is None or not quality.bits_per_byte:
        return 1.0
    return quality.bits_per_token / quality.bits_per_byte
