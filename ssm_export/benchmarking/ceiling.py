"""What share of the predicted ceiling of a target each row reaches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssm_export.benchmarking.report import Row
from ssm_export.benchmarking.work import DECODE, PREFILL
from ssm_export.bundle import Bundle

if TYPE_CHECKING:
    from ssm_export.prediction import Prediction
    from ssm_export.targets import Target


def target_of(name: str | None, device: str) -> Target | None:
    """The target to predict for: the one named, this machine's where the runner uses its GPU.

    Raises:
        SsmExportError: ``UNKNOWN_TARGET``.
    """
    from ssm_export import targets

    if name is not None:
        return targets.get_target(name)
    return None if device == "cpu" else targets.this_machine()


def with_ceilings(
    bundle: Bundle, target: Target | None, rows: Sequence[Row], power_mode: str
) -> tuple[tuple[Row, ...], dict[str, Any] | None]:
    """The rows with their share of the ceiling, and the prediction of the first batch size.

    Args:
        bundle: the bundle.
        target: a target, or None for no prediction.
        rows: of a report.
        power_mode: the device's; where the target knows it, decode is held against that mode.

    Returns:
        the rows, and the ``prediction`` member of the report.
    """
    if target is None:
        return tuple(rows), None
    from ssm_export.prediction import needs_of, predict_needs

    needs = needs_of(bundle)

    def predicted(row: Row) -> Prediction:
        return predict_needs(needs, target, batch=row.batch, tokens=row.tokens)

    shared = [_with_share(row, predicted(row), power_mode) for row in rows]
    return tuple(shared), predicted(rows[0]).as_json()


def _with_share(row: Row, predicted: Prediction, power_mode: str) -> Row:
    if row.phase not in (PREFILL, DECODE):
        return row
    ceiling = predicted.prefill_tokens_per_s
    if row.phase == DECODE:
        by_mode = {mode.name.lower(): mode.decode_tokens_per_s for mode in predicted.modes}
        ceiling = by_mode.get(power_mode.lower(), predicted.decode_tokens_per_s)
    if not ceiling:
        return row
    return dataclasses.replace(row, ceiling_share=row.tokens_per_s / ceiling)
