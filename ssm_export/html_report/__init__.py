"""The HTML report: one file that shows what a bundle is, whether it is right, and how fast."""

from __future__ import annotations

from ssm_export.html_report.writer import HtmlReport, make_report

__all__ = ["HtmlReport", "make_report"]
