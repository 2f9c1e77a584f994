"""The wheel of this very installation, put together without a network or a build tool.

A checkout and an installed wheel keep the same files in different places; the metadata (name,
version, entry points, licence) is what pip installed. A wheel is a zip with a list of its files:
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from ssm_export import __version__, errors
from ssm_export.errors import SsmExportError
from ssm_export.resources import config_dir, load_plugins

_NAME: Final = "ssm_export"
_KEPT: Final = ("METADATA", "entry_points.txt", "licenses/LICENSE")
_LEFT_OUT: Final = {"__pycache__", "build"}
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)


def wheel_name() -> str:
    """The file name of the wheel; it is pure Python."""
    return f"{_NAME}-{__version__}-py3-none-any.whl"


def make_wheel() -> bytes:
    """The wheel; equal installations give equal bytes.

    Raises:
        SsmExportError: ``MISSING_PACKAGE`` where this program runs without being installed.
    """
    information = f"{_NAME}-{__version__}.dist-info"
    files = dict(sorted(_code()))
    files |= {f"{information}/{name}": text for name, text in _metadata().items()}
    files[f"{information}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: ssm-export\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{path},sha256={_hash(content)},{len(content)}" for path, content in files.items()]
    record.append(f"{information}/RECORD,,")
    files[f"{information}/RECORD"] = ("\n".join(record) + "\n").encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            item = zipfile.ZipInfo(path, _LONG_AGO)
            item.compress_type = zipfile.ZIP_DEFLATED
            item.external_attr = 0o100644 << 16
            archive.writestr(item, content)
    return made.getvalue()


def _code() -> Iterator[tuple[str, bytes]]:
    package = Path(__file__).resolve().parents[1]
    plugins = load_plugins()
    assert plugins.__file__ is not None
    folders = {
        _NAME: package,
        f"{_NAME}/configs": config_dir(),
        "ssm_export_plugins": Path(plugins.__file__).parent,
    }
    for name, folder in folders.items():
        for file, relative in source_files(folder):
            yield f"{name}/{relative}", file.read_bytes()


def source_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files of a folder of sources with their relative paths; nothing that was made of them."""
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        made = _LEFT_OUT & set(relative.parts) or file.suffix in {".pyc", ".so"}
        if file.is_file() and not made:
            yield file, relative.as_posix()


def _metadata() -> dict[str, bytes]:
    try:
        distribution = metadata.distribution("ssm-export")
    except metadata.PackageNotFoundError as error:
        raise SsmExportError(
            errors.MISSING_PACKAGE,
            "ssm-export runs from its sources here and was never installed, so it has no metadata "
            "to put into a wheel",
            fix="pip install --editable . in the checkout",
        ) from error
    found = {name: distribution.read_text(name) for name in _KEPT}
    return {name: text.encode() for name, text in found.items() if text}


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
