"""Bench: how fast a bundle that passes verify runs here."""

from __future__ import annotations

from ssm_export.benchmarking.bench import bench
from ssm_export.benchmarking.report import BenchReport, Row

__all__ = ["BenchReport", "Row", "bench"]
