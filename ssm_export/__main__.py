"""``python -m ssm_export`` is ``ssm-export``."""

from ssm_export.cli import main

main()
