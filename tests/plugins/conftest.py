"""Under the interpreter, which runs kernels where there is no GPU, bf16 is made what GPUs have."""

from __future__ import annotations

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


def multiply_bfloat16() -> None:
    """Let the interpreter's dot take bf16 as numbers; it multiplies their bit patterns."""
    import triton.language as tl
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def as_float(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = np.ascontiguousarray(handle.data).view(ml_dtypes.bfloat16)
        return interpreter.TensorHandle(bits.astype(np.float32), tl.float32)

    def dot_of_numbers(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, as_float(a), as_float(b), *others)

    interpreter.InterpreterBuilder.create_dot = dot_of_numbers


if not torch.cuda.is_available():
    round_to_nearest()
    multiply_bfloat16()
load_plugins()
