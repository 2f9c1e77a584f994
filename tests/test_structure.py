"""The shape of the code: import directions, file sizes, error codes, the public names."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import ssm_export
from ssm_export import errors

ROOT = Path(__file__).resolve().parents[1]
PYTHON_FILES = sorted(
    path
    for folder in ("ssm_export", "plugins", "tests", "samples")
    for path in (ROOT / folder).rglob("*.py")
)
PUBLIC = {
    "Bundle",
    "Session",
    "SsmExportError",
    "State",
    "__version__",
    "bench",
    "build",
    "doctor",
    "export",
    "generate",
    "inspect",
    "kernels",
    "list_items",
    "package",
    "quantize",
    "report",
    "verify",
}


def test_imports_point_one_way():
    pytest.importorskip("importlinter")
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_no_two_test_files_have_one_name():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)


def test_error_codes_are_unique_and_explained():
    codes = errors.all_codes()
    assert len(codes) > 20
    assert [code for code, count in Counter(c.code for c in codes).items() if count > 1] == []
    assert all(code.meaning and code.exit_status in (1, 2, 3, 130) for code in codes)


def test_every_error_code_is_raised_somewhere():
    sources = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("ssm_export", "plugins")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "errors.py"
    )
    own = (ROOT / "ssm_export" / "errors.py").read_text(encoding="utf-8")
    names = [n for n, v in vars(errors).items() if isinstance(v, errors.ErrorCode)]
    unused = [n for n in names if f"errors.{n}" not in sources and own.count(n) < 2]
    assert unused == []


def test_the_public_names_are_these():
    assert set(ssm_export.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(ssm_export, name) is not None
    with pytest.raises(AttributeError):
        ssm_export.nothing_of_the_kind  # noqa: B018  # the access is the test


def test_importing_the_package_loads_nothing_heavy():
    script = (
        "import sys, ssm_export, ssm_export.cli;"
        "print([m for m in ('torch','numpy','onnx','onnxruntime','rich') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_device_side_imports_without_torch():
    """Quantize, build, verify, bench and inspect load on a board that has no torch."""
    script = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers', 'safetensors', 'onnxscript'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import ssm_export.api, ssm_export.verification, ssm_export.benchmarking, ssm_export.generation
import ssm_export.inspection, ssm_export.machine, ssm_export.engines.tensorrt, ssm_export.lowering
import ssm_export.quantization.quantizer, ssm_export.quantization.preview
import ssm_export.html_report
from ssm_export.lowering import lower
"""
    subprocess.run([sys.executable, "-c", script], check=True)
