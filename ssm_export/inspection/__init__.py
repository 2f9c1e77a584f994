"""Inspect: what a bundle, a graph, an engine or a checkpoint holds, without reading its weights."""

from __future__ import annotations

from ssm_export.inspection.inspector import GraphFacts, InspectReport, StateFacts, inspect

__all__ = ["GraphFacts", "InspectReport", "StateFacts", "inspect"]
