"""Building the C++ runner, and running it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "cpp_runner"
README = (SAMPLE / "README.md").read_text(encoding="utf-8")
RTX_LIBRARY = "libtensorrt_rtx.so.1"
SANITIZED = "-Werror -O0 -fsanitize=address,undefined -fno-sanitize-recover=all"
CHUNK = 32


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **options
    )


def require(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on this machine")


@contextlib.contextmanager
def build_folder(config: pytest.Config, name: str) -> Iterator[Path]:
    """A folder that stays between sessions while the sources are the same, for one at a time."""
    found = hashlib.sha256()
    for file in sorted(SAMPLE.rglob("*")):
        if file.is_file() and file.suffix != ".md":
            found.update(f"{file.relative_to(SAMPLE)}\0".encode() + file.read_bytes())
    folder = Path(config.cache.mkdir("ssm_runner")) / f"{name}-{found.hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def compile_in(folder: Path, *definitions: str) -> str:
    """What CMake and the compiler say; a warning is an error."""
    configured = run("cmake", "-S", SAMPLE, "-B", folder, *definitions)
    assert configured.returncode == 0, configured.stderr
    done = run("cmake", "--build", folder, "--parallel", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return configured.stdout + done.stdout + done.stderr
