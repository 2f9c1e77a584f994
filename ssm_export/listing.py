"""What this release supports, read from the code and the YAML beside it."""

from __future__ import annotations

from dataclasses import asdict
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
    """Every target of ``--target``: what its file says, and the ``formats`` that follow from it."""
    from ssm_export.device_formats import formats
    from ssm_export.targets import all_targets

    return [
        {**target.as_json(), "formats": [*target.precisions, *formats(target)]}
        for target in all_targets()
    ]


def recipes() -> list[dict[str, Any]]:
    """Every recipe of ``quantize --recipe``: ``name``, ``description``, ``formats`` of its tensors,
    ``limit_bits`` per byte that it may lose, ``targets`` that can run it, and its ``rules``."""
    from ssm_export.quantization.recipe import read_recipe, recipe_names
    from ssm_export.quantization.support import can_run
    from ssm_export.targets import all_targets

    return [
        {
            "name": recipe.name,
            "description": recipe.description,
            "formats": list(recipe.schemes),
            "limit_bits": recipe.limit_bits,
            "targets": [target.name for target in all_targets() if can_run(recipe, target)],
            "calibration": asdict(recipe.calibration),
            "rules": [asdict(rule) for rule in recipe.rules],
        }
        for recipe in map(read_recipe, recipe_names())
    ]
