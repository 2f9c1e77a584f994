"""Model families: one file each, found by its name. Nothing to edit here to add one."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING

from ssm_export import errors
from ssm_export.errors import SsmExportError

if TYPE_CHECKING:
    from ssm_export.models.base import RecurrentLM

_NOT_FAMILIES = frozenset({"base"})


def families() -> tuple[str, ...]:
    """Every supported ``model_type``, in order."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if name not in _NOT_FAMILIES))


def family(model_type: str) -> type[RecurrentLM]:
    """The model class of a ``model_type``; ``UNKNOWN_MODEL_TYPE`` names the nearest supported."""
    known = families()
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=1, cutoff=0.0)
        raise SsmExportError(
            errors.UNKNOWN_MODEL_TYPE,
            f"model_type '{model_type}' is not supported; the nearest supported is '{near[0]}'",
            where="config.json",
            fix="ssm-export list models shows what is",
        )
    model: type[RecurrentLM] = importlib.import_module(f"{__name__}.{model_type}").Model
    return model
