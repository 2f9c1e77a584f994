"""The checks, each a function ``check(context) -> Outcome``; :data:`CHECKS` is their order.

A check raises :class:`~ssm_export.verification.truth.NotRun` where it cannot be run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from ssm_export.verification.checks.agreement import logits, states
from ssm_export.verification.checks.batch import independent_rows, ragged
from ssm_export.verification.checks.long_runs import drift, greedy_tokens
from ssm_export.verification.checks.sequence import lengths, prefill_equals_steps, splits
from ssm_export.verification.checks.simulation import codes
from ssm_export.verification.context import Context, Outcome

CHECKS: Final[Mapping[str, Callable[[Context], Outcome]]] = MappingProxyType(
    {
        "logits": logits,
        "states": states,
        "codes": codes,
        "lengths": lengths,
        "prefill equals steps": prefill_equals_steps,
        "splits": splits,
        "batch rows": independent_rows,
        "ragged": ragged,
        "greedy tokens": greedy_tokens,
        "drift": drift,
    }
)
"""Name to check, the quick ones first."""

QUICK: Final = ("logits", "states", "prefill equals steps")
"""What has to pass before a number about speed means anything."""

__all__ = ["CHECKS", "QUICK"]
