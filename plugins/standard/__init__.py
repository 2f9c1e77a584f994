"""Operators of the ONNX standard that our kernels compute: one module per operator.

Graphs of any exporter hold them from opset 27 on. A module defines ``SPEC``, the contract that the
kernels and their tests share (it has no bodies: ONNX has them), and ``call(shapes, types,
attributes)``, which checks one node and gives the :class:`~ssm_export.ops.Call` that a plan is
made for. They are not operators of the domain ``ssm_export``, so ``ssm_export.ops`` has none.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Final

from ssm_export.ops import Call, OpSpec
from ssm_export_plugins.standard._shapes import Shape

OPSET: Final = 27
"""The opset that brought these operators."""


@functools.cache
def _modules() -> dict[str, Any]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names if name[0] != "_"]
    return {module.SPEC.name: module for module in modules if hasattr(module, "SPEC")}


def names() -> tuple[str, ...]:
    """The op types, in the order of the module names."""
    return tuple(_modules())


def get(name: str) -> OpSpec:
    """The contract of the standard operator ``name``.

    Raises:
        KeyError: no kernels are for a standard operator of this name.
    """
    found: OpSpec = _modules()[name].SPEC
    return found


def call(
    name: str,
    shapes: Mapping[str, Shape],
    types: Mapping[str, str],
    attributes: Mapping[str, Any],
) -> Call:
    """One node of the operator ``name`` as a call.

    Args:
        name: op type.
        shapes: input port to its sizes, an integer or anything else where it is not static; exactly
            the inputs that are there.
        types: input port to ONNX type name.
        attributes: those the node has; the others are the schema's defaults.

    Raises:
        SsmExportError: ``BAD_OPERATOR_CALL`` naming the operator and the input.
    """
    found: Call = _modules()[name].call(shapes, types, attributes)
    return found
