"""Verify: do the graphs compute what the reference computes?"""

from __future__ import annotations

from ssm_export.verification.checks import CHECKS, QUICK
from ssm_export.verification.reference import Reference
from ssm_export.verification.report import CheckResult, VerifyReport
from ssm_export.verification.verifier import AGAINST, verify

__all__ = ["AGAINST", "CHECKS", "QUICK", "CheckResult", "Reference", "VerifyReport", "verify"]
