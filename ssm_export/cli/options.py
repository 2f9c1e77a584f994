"""Options that several verbs have."""

from __future__ import annotations

import click

runner = click.option(
    "--runner",
    type=click.Choice(["onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]),
    default="onnxruntime",
    show_default=True,
    help="Runtime to use.",
)
lowering = click.option(
    "--lowering",
    type=click.Choice(["canonical", "native", "ort"]),
    help="Graphs to run; the bundle's choice when left out.",
)
