"""Lowering: what becomes of the operator calls of a canonical graph, per runtime."""

from __future__ import annotations

from ssm_export.lowering.bodies import attach_bodies
from ssm_export.lowering.fusion import fuse_calls
from ssm_export.lowering.lower import LOWERINGS, Lowered, lower
from ssm_export.lowering.plugin import PLUGIN_DOMAIN, lower_for_plugin

__all__ = [
    "LOWERINGS",
    "PLUGIN_DOMAIN",
    "Lowered",
    "attach_bodies",
    "fuse_calls",
    "lower",
    "lower_for_plugin",
]
