"""With which versions, and on which machines."""

from __future__ import annotations

from collections.abc import Mapping

from ssm_export.html_report.markup import Child, Markup, join
from ssm_export.html_report.sections.section import Page, Section, Table, facts, figure

_MACHINE = (
    ("jetson", "board"),
    ("gpu", "GPU"),
    ("cpu", "CPU"),
    ("cores", "cores"),
    ("memory_gb", "memory, GB"),
    ("power_mode", "power mode"),
    ("os", "system"),
    ("python", "Python"),
)


def section(page: Page) -> Section:
    """Versions by stage, machines by bench, engines and what they are tied to."""
    inputs = page.inputs
    manifest = inputs.bundle.manifest
    stages: dict[str, Mapping[str, str]] = {"export": manifest.versions}
    for verified in inputs.verified:
        stages[f"verify, {verified.runner}"] = verified.runtime
    for benched in inputs.benched:
        stages[f"bench, {benched.runner}"] = benched.runtime
    tools = list(dict.fromkeys(tool for versions in stages.values() for tool in versions))
    rows: list[tuple[Child, ...]] = [
        (tool, *(versions.get(tool, "–") for versions in stages.values())) for tool in tools
    ]
    parts = [
        figure(
            "Versions by stage",
            "The tools that each stage ran with.",
            None,
            Table(("tool", *stages), tuple(rows)).markup("Versions by stage"),
        )
    ]
    machines = [
        _machine(benched.machine, benched.created, benched.place)
        for benched in inputs.benched
        if benched.machine
    ]
    parts += machines
    parts.append(_engines(page))
    return Section("versions", "Versions and machine", join(parts))


def _machine(machine: Mapping[str, str], created: str, place: str) -> Markup:
    rows: list[tuple[Child, Child]] = [
        (name, machine[key]) for key, name in _MACHINE if machine.get(key) not in (None, "", "0")
    ]
    rows += [(key, value) for key, value in machine.items() if key not in dict(_MACHINE) and value]
    if created:
        rows.append(("measured", created))
    return figure(f"Machine of the bench: {place}", "", None, facts(f"Machine, {place}", rows))


def _engines(page: Page) -> Markup:
    engines = page.inputs.bundle.manifest.engines
    if not engines:
        return join(())
    rows = tuple(
        (
            f"{entry.engine}, {entry.form}",
            entry.target,
            entry.compute_capability,
            entry.platform,
            ", ".join(f"{name} {version}" for name, version in entry.versions.items()),
            "has run" if entry.ran else "has not been run",
        )
        for entry in engines
    )
    columns = ("engine", "target", "compute capability", "platform", "versions", "")
    table = Table(columns, rows).markup("Engines")
    says = "An engine is tied to these versions and to this chip."
    return figure("Engines", says, None, table)
