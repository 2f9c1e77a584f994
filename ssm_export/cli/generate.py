"""``ssm-export generate BUNDLE PROMPT``."""

from __future__ import annotations

from typing import Any

import click

from ssm_export.cli.common import Job, Result, verb
from ssm_export.cli.options import runner


@verb("generate")
@click.argument("bundle")
@click.argument("prompt", default="")
@runner
@click.option(
    "--max-tokens",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    help="Tokens to add at most; 0 only reads PROMPT, for --save-state.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token every time.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Sample among so many tokens; 0 for all.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample among the likeliest tokens with this probability together.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the sampling.",
)
@click.option("--tokens", is_flag=True, help="PROMPT is token ids with commas, not text.")
@click.option(
    "--load-state",
    metavar="FILE",
    help="Go on from a saved state; PROMPT, if any, is read after it.",
)
@click.option(
    "--save-state",
    metavar="FILE",
    help="Save what has been read at the end, PROMPT and the new tokens.",
)
def command(job: Job, bundle: str, prompt: str, tokens: bool, **options: Any) -> Result:
    """Continue PROMPT, or a saved state; text appears as it comes."""
    from ssm_export import api

    unseen = [prompt]  # it appears with the first token, so not before an error

    def show(piece: str) -> None:
        job.out.write("".join(unseen) + piece)
        job.out.flush()
        unseen.clear()

    asked: str | list[int] = _ids(prompt) if tokens else prompt
    if job.as_json:
        return Result(api.generate(bundle, asked, **options).as_json())
    try:
        report = api.generate(bundle, asked, stream=show, **options)
    except BaseException:
        if not unseen:
            show("\n")
        raise
    show("\n")
    return Result(report.as_json())


def _ids(prompt: str) -> list[int]:
    try:
        return [int(word) for word in prompt.replace(",", " ").split()]
    except ValueError as error:
        raise click.BadParameter(f"'{prompt}' is no list of token ids such as 5,17,3.") from error
