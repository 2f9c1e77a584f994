"""The sections of the page, in its order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from ssm_export.html_report.sections.drift import section as drift
from ssm_export.html_report.sections.latency import section as latency
from ssm_export.html_report.sections.memory import section as memory
from ssm_export.html_report.sections.parity import section as parity
from ssm_export.html_report.sections.quantization import section as quantization
from ssm_export.html_report.sections.roofline import section as roofline
from ssm_export.html_report.sections.section import Page, Section
from ssm_export.html_report.sections.source import section as source
from ssm_export.html_report.sections.versions import section as versions

SECTIONS: Final[Mapping[str, Callable[[Page], Section]]] = MappingProxyType(
    {
        "source": source,
        "parity": parity,
        "drift": drift,
        "latency": latency,
        "roofline": roofline,
        "memory": memory,
        "quantization": quantization,
        "versions": versions,
    }
)
"""Name to what makes the section."""

__all__ = ["SECTIONS", "Page", "Section"]
