"""What verbs have in common when they report: the head of a JSON document, and tables."""

from __future__ import annotations

from ssm_export.documents.document import document, versions

__all__ = ["document", "versions"]
