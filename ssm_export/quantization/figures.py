"""The figures of a report that come from a bundle: sizes, the ceiling of decoding, drift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from ssm_export.bundle import Bundle
from ssm_export.graph_files import CANONICAL
from ssm_export.prediction import weights_read
from ssm_export.quantization.report import Ceiling, Footprint, decode_ceiling

if TYPE_CHECKING:
    from ssm_export.targets import Target


def footprint(bundle: Bundle) -> Footprint:
    """What a bundle takes on disk, and what decoding one token of one row moves."""
    manifest = bundle.manifest
    states = sum(state.bytes_per_row for state in manifest.states)
    step = ir.load(bundle.graph_path("step", CANONICAL))
    return Footprint(manifest.weights.bytes, weights_read(step), states)


def ceiling_of(target: Target | None, before: Footprint, after: Footprint) -> Ceiling | None:
    """Tokens per second that a target's memory allows at batch 1; None where it is not known."""
    if target is None or target.bandwidth_gb_s is None:
        return None
    return Ceiling(
        target.name,
        target.bandwidth_gb_s,
        *(
            decode_ceiling(one.read_per_token, one.states_per_row, target)
            for one in (before, after)
        ),
    )
