"""Kernels run under Triton's interpreter where there is no GPU; it is chosen before any import."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import torch

from ssm_export.resources import load_plugins


def round_to_nearest() -> None:
    """Let the interpreter round fp32 to bf16 to nearest even, as every GPU does; it truncates."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_nearest(value: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return np.asarray(value).astype(ml_dtypes.bfloat16).view(np.uint16)
        return convert(value, source, target, rounding)

    interpreter._convert_float = convert_nearest


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    round_to_nearest()
load_plugins()
