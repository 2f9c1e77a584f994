"""What this release supports, read from the code and the YAML beside it."""

from __future__ import annotations

from typing import Any

import yaml

from ssm_export.resources import config_dir


def models() -> list[dict[str, Any]]:
    """Every family: ``name``, ``title``, ``operators``, ``layouts``, ``sizes``, ``paper``."""
    return [
        {
            "name": file.stem,
            "title": known["title"],
            "operators": known["operators"],
            "layouts": known["layouts"],
            "sizes": list(known["sizes"]),
            "paper": known["paper"],
        }
        for file in sorted(config_dir("models").glob("*.yaml"))
        for known in [yaml.safe_load(file.read_text(encoding="utf-8"))]
    ]


def operators() -> list[dict[str, Any]]:
    """Every operator: ``name``, ``inputs``, ``outputs``, ``attributes``, ``doc``."""
    from ssm_export.ops import all_ops

    return [
        {
            "name": spec.name,
            "inputs": [
                f"{p.name}{'?' if p.optional else ''} ({','.join(p.axes)})" for p in spec.inputs
            ],
            "outputs": [f"{p.name} ({','.join(p.axes)})" for p in spec.outputs],
            "attributes": dict(spec.attributes),
            "doc": spec.doc.strip().splitlines()[0] if spec.doc.strip() else "",
        }
        for spec in all_ops().values()
    ]


def targets() -> list[dict[str, Any]]:
    """Every target of ``build --target``."""
    from ssm_export.targets import all_targets

    return [target.as_json() for target in all_targets()]
