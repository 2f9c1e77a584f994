"""The README's support table, made from the code: ``python tests/readme_table.py`` prints it."""

from __future__ import annotations

from ssm_export import listing
from ssm_export.engines._plugins import PLUGIN
from ssm_export.lowering import LOWERINGS


def support_table() -> str:
    """One row per family."""
    rows = [
        "| `model_type` | family | operators | checkpoint layouts | lowerings |",
        "|---|---|---|---|---|",
    ]
    for item in listing.models():
        operators, layouts = (", ".join(item[key]) for key in ("operators", "layouts"))
        lowerings = ", ".join(("canonical", *LOWERINGS, PLUGIN))
        rows.append(
            f"| `{item['name']}` | {item['title']} | {operators} | {layouts} | {lowerings} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(support_table())
