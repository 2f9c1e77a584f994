"""ssm-export: state-space models from PyTorch to verified ONNX graphs and TensorRT engines.

The public functions are the verbs of the command line: :func:`export`, :func:`quantize`,
:func:`build`, :func:`verify`, :func:`bench`, :func:`generate`, :func:`inspect`, :func:`doctor`,
:func:`kernels`, :func:`package`, :func:`report`,
:func:`list_items`; :class:`Bundle` is what they hand each other.
:class:`Session` reads and writes token after token, and its :class:`State` can be saved and forked.
They are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssm_export.api import (
        bench,
        build,
        doctor,
        export,
        generate,
        inspect,
        kernels,
        list_items,
        package,
        quantize,
        report,
        verify,
    )
    from ssm_export.bundle import Bundle
    from ssm_export.errors import SsmExportError
    from ssm_export.session import Session
    from ssm_export.state import State

__version__ = "0.1.0"

__all__ = [
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
]

_HOMES = {
    "Bundle": "ssm_export.bundle",
    "Session": "ssm_export.session",
    "SsmExportError": "ssm_export.errors",
    "State": "ssm_export.state",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ssm_export' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "ssm_export.api")), name)


def __dir__() -> list[str]:
    return list(__all__)
