"""Lowering: what becomes of the operator calls of a canonical graph, per runtime."""

from __future__ import annotations

from ssm_export.lowering.bodies import attach_bodies
from ssm_export.lowering.lower import LOWERINGS, Lowered, lower

__all__ = ["LOWERINGS", "Lowered", "attach_bodies", "lower"]
