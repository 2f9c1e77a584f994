"""The command line: ``ssm-export VERB``. One file per verb, imported when the verb is used.

The modules of verbs become names of this package (``list`` among them), so it holds nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ssm_export.cli.running import run
from ssm_export.cli.verbs import VERBS, command_of, group

__all__ = ["VERBS", "command_of", "group", "main"]


def main(args: Sequence[str] | None = None) -> None:
    """The entry point: run the command line and exit with its status."""
    sys.exit(run(group, [*(sys.argv[1:] if args is None else args)]))
