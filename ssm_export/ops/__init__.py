"""The operators of domain ``ssm_export``: one module per operator, found by scanning this package.

A module that defines ``SPEC`` (an :class:`~ssm_export.ops.spec.OpSpec`) is an operator; there is
no list to edit.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from ssm_export.ops.spec import DOMAIN, VERSION, Call, OpSpec, Port, Tolerance

__all__ = [
    "DOMAIN",
    "VERSION",
    "Call",
    "OpSpec",
    "Port",
    "Tolerance",
    "all_ops",
    "fused_ops",
    "get",
    "register_schemas",
]


@functools.cache
def _scan() -> tuple[OpSpec, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names if name[0] != "_"]
    specs = (getattr(module, "SPEC", None) for module in modules)
    return tuple(spec for spec in specs if isinstance(spec, OpSpec))


def all_ops() -> dict[str, OpSpec]:
    """Every operator by its op type, in the order of the module names."""
    return {spec.name: spec for spec in _scan()}


def fused_ops() -> dict[str, OpSpec]:
    """The operators that only the ``plugin`` lowering puts into graphs, by op type."""
    from ssm_export.ops._fused import CONV_SSD_SCAN

    return {CONV_SSD_SCAN.name: CONV_SSD_SCAN}


def get(name: str) -> OpSpec:
    """The operator ``name``.

    Raises:
        KeyError: no operator has this name; the message lists those there are.
    """
    specs = all_ops()
    if name not in specs:
        raise KeyError(f"no operator is called {name!r}; there are {', '.join(specs)}")
    return specs[name]


def register_schemas() -> None:
    """Register every operator's schema with ``onnx.defs``; calling it again changes nothing."""
    import onnx

    for spec in all_ops().values():
        if not onnx.defs.has(spec.name, DOMAIN):
            onnx.defs.register_schema(spec.schema())
