"""The pinned packages of a device: complete, in range, there for its Python, and no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ssm_export.packaging.pack import BOARD

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(python: str, name: str = "requirements.txt") -> dict[str, Requirement]:
    """What pip installs of the list with a Python."""
    lines = [line.partition("#")[0].strip() for line in (BOARD / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line]
    environment = {"python_version": python}
    kept = [r for r in found if r.marker is None or r.marker.evaluate(environment)]
    assert len({canonicalize_name(r.name) for r in kept}) == len(kept)
    return {canonicalize_name(requirement.name): requirement for requirement in kept}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_range(python):
    """Those of the package itself, of its device extras, and no package that is no one's."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = pins(python)
    for text in [*project["dependencies"], *extras["cpu"], *extras["generate"]]:
        needed = Requirement(text)
        (pin,) = pinned[canonicalize_name(needed.name)].specifier
        assert pin.operator == "=="
        assert needed.specifier.contains(pin.version), needed


def test_what_the_pinned_packages_need_is_pinned_too():
    """As their own metadata says it here, but for the hub that tokenizers can load from."""
    pinned = pins("{}.{}".format(*sys.version_info[:2]))
    for name in pinned:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, needs):
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and requirement.name != "huggingface-hub":
                assert canonicalize_name(requirement.name) in pinned, (name, requirement)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-rtx.txt"])
def test_no_torch(name):
    heavy = {"torch", "transformers", "triton", "onnxscript", "safetensors", "huggingface-hub"}
    assert not heavy & set(pins("3.12", name))


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_every_pin_has_a_release_for_the_board(python, tmp_path):
    """JetPack 6 and 7: aarch64, C library of Ubuntu 22.04. pip itself takes this Python's markers
    whatever it is told, so they are evaluated here."""
    lines = [f"{name}{requirement.specifier}" for name, requirement in pins(python).items()]
    (tmp_path / "pins.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(tmp_path / "wheels"), "--only-binary=:all:"]
    command += ["--python-version", python]
    for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014"):
        command += ["--platform", f"{tag}_aarch64"]
    done = subprocess.run(
        [*command, "-r", str(tmp_path / "pins.txt")], capture_output=True, text=True
    )
    if re.search(r"Connection|Temporary failure|from versions: none", done.stderr):
        pytest.skip("pip cannot reach packages here")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "wheels").iterdir())) == len(lines)
