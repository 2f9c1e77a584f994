"""Run command lines, in this process or in one of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """stdout as one JSON document."""
        return json.loads(self.stdout)

    @property
    def last_line(self) -> str:
        return self.stderr.splitlines()[-1]


def run_process(*args: str, code: str = "from ssm_export.cli import main; main()") -> Ended:
    """Run ``ssm-export *args`` in a fresh interpreter."""
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    return Ended(done.returncode, done.stdout, done.stderr)
