"""PTX as a runtime wants it that passes a kernel less than Triton declares."""

from __future__ import annotations

import re

from ssm_export import errors
from ssm_export.errors import SsmExportError


def without_last_parameters(ptx: str, entry: str, count: int) -> str:
    """PTX whose entry point has lost its last parameters, which nothing in it may read.

    Triton declares two pointers for scratch memory that TensorRT would not pass.

    Raises:
        SsmExportError: ``KERNEL_UNSUPPORTED`` where one of them is read.
    """
    found = re.search(rf"\.entry\s+{re.escape(entry)}\s*\(([^)]*)\)", ptx)
    parameters = found[1].split(",") if found else []
    if found is None or count > len(parameters):
        raise _unfit(entry, "its PTX has no such entry point")
    if not count:
        return ptx
    rest = ptx[: found.start(1)] + ptx[found.end(1) :]
    for parameter in parameters[-count:]:
        name = re.sub(r"\[.*\]", "", parameter.split()[-1])
        if re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", rest):
            raise _unfit(entry, f"it reads its parameter {name}, which TensorRT does not pass")
    kept = ",".join(parameters[:-count]) + "\n"
    return ptx[: found.start(1)] + kept + ptx[found.end(1) :]


def _unfit(entry: str, what: str) -> SsmExportError:
    return SsmExportError(errors.KERNEL_UNSUPPORTED, what, where=entry)
