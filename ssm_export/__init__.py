"""ssm-export: state-space models from PyTorch to verified ONNX graphs and TensorRT engines.

The public functions are the verbs of the command line: :func:`export`, :func:`quantize`,
:func:`build`, :func:`verify`, :func:`bench`, :func:`generate`, :func:`inspect`, :func:`doctor`,
:func:`kernels`, :func:`list_items`; :class:`Bundle` is what they hand each other.
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
        quantize,
        verify,
    )
    from ssm_export.bundle import Bundle
    from ssm_export.errors import SsmExportError

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "SsmExportError",
    "__version__",
    "bench",
    "build",
    "doctor",
    "export",
    "generate",
    "inspect",
    "kernels",
    "list_items",
    "quantize",
    "verify",
]

_HOMES = {"Bundle": "ssm_export.bundle", "SsmExportError": "ssm_export.errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ssm_export' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "ssm_export.api")), name)


def __dir__() -> list[str]:
    return list(__all__)
