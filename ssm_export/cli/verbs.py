"""The group of verbs: their names, and their modules imported when they are asked for."""

from __future__ import annotations

from typing import Final

import click

VERBS: Final = {
    "doctor": "What this machine can do.",
    "list": "Models, operators, targets and recipes there are.",
    "export": "Make a bundle from a checkpoint.",
    "quantize": "Make a smaller, faster bundle from a bundle.",
    "inspect": "What a bundle, a graph or an engine holds.",
    "kernels": "Compile the GPU kernels of a bundle or a graph.",
    "build": "Build engines into a bundle.",
    "verify": "Hold a bundle's graphs against the truth.",
    "bench": "Measure a bundle that passes verify.",
    "report": "Show everything about a bundle in one HTML file.",
    "generate": "Continue a prompt.",
    "package": "Pack a bundle for a board or a server.",
}
"""The verbs in the order of the way a model goes, and what each does."""


class Verbs(click.Group):
    """A group whose verbs are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        from importlib import import_module

        command: click.Command = import_module(f"ssm_export.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(VERBS)}."
            raise click.UsageError(f"There is no verb '{args[0]}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from ssm_export import __version__

        click.echo(f"ssm-export {__version__}")
        ctx.exit()


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB [OPTIONS]",
    epilog="ssm-export VERB --help says more about a verb. Start with: "
    "ssm-export export CHECKPOINT -o BUNDLE",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version)
def group() -> None:
    """From state-space model checkpoints to verified ONNX graphs and TensorRT engines."""


def command_of(verb: str) -> click.Command:
    """The click command of a verb, for tests and documentation."""
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    return command
