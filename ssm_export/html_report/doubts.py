"""What speaks against the times of a bench: its device, its blocks, its weights, its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ssm_export.html_report import numbers
from ssm_export.html_report.inputs import Benched
from ssm_export.html_report.markup import Markup, element
from ssm_export.targets import Target, all_targets

_NOT_LOCKED: Final = "not locked"
"""What telemetry says where ``jetson_clocks`` does not hold the clocks."""


@dataclass(frozen=True)
class Doubt:
    """A reason not to trust a time.

    Attributes:
        words: a few, for a badge.
        says: what was seen, as a sentence.
        bad: whether the time is wrong rather than uncertain.
    """

    words: str
    says: str
    bad: bool = False

    @property
    def badge(self) -> Markup:
        """The words as a badge, what was seen as its tooltip."""
        look = "badge bad" if self.bad else "badge warn"
        return element("span", self.words, class_=look, title=self.says)


def doubts_of(report: Benched, weights: str) -> tuple[Doubt, ...]:
    """Everything that speaks against a report's times, the worst first.

    Args:
        report: of bench.
        weights: SHA-256 of the weights that the bundle has now.
    """
    found = []
    if report.steady is False:
        if report.p50_spread is None:
            says = "Too few blocks were timed to say how well the medians repeat."
        else:
            spread = numbers.percent(report.p50_spread, 2)
            says = f"Medians of the blocks of the run differ by up to {spread}."
        found.append(Doubt("not steady", says))
    if report.weights and report.weights != weights:
        says = "The times are of other weights than the bundle has now."
        found.append(Doubt("outdated", says, bad=True))
    found += device_doubts(report)
    return tuple(sorted(found, key=lambda doubt: not doubt.bad))


def device_doubts(report: Benched) -> tuple[Doubt, ...]:
    """What telemetry saw of a device that did not run as fast as it can."""
    found = []
    if throttled := texts(report.telemetry.get("throttled")):
        says = f"The device held itself back: {', '.join(throttled)}."
        found.append(Doubt("throttled", says, bad=True))
    if below := texts(report.telemetry.get("below_maximum")):
        found.append(Doubt("clocks below maximum", f"Below their highest: {', '.join(below)}."))
    if report.telemetry.get("jetson_clocks") == _NOT_LOCKED:
        says = "jetson_clocks did not hold the clocks at their highest, so they follow the load."
        found.append(Doubt("clocks not locked", says))
    return tuple(found)


def texts(value: Any) -> list[str]:
    """The items of a list as texts; empty for anything else."""
    return [str(item) for item in value] if isinstance(value, list) else []


def is_elsewhere(report: Benched, name: str) -> bool:
    """Whether the times are surely of another device than the target of a name.

    A card's own name is in the target's file. A Jetson may be a board of somebody's, whose name is
    in no file, so it is another device only where it calls itself by another target's name.
    """
    if report.target != name or report.device.startswith("cpu"):
        return True
    target = next((one for one in all_targets() if one.name == name), None)
    board, card = (report.machine.get(key, "").casefold() for key in ("jetson", "gpu"))
    itself = board or card
    if target is None or not target.known_as or not itself or _is_called(target, itself):
        return False
    return not board or any(_is_called(other, itself) for other in all_targets())


def _is_called(target: Target, name: str) -> bool:
    """A machine's name goes on with its release or compute capability: ``NVIDIA H200 (9.0)``."""
    return any(
        name == known or name.startswith((f"{known},", f"{known} ("))
        for known in map(str.casefold, target.known_as)
    )
