"""Triton's interpreter with bf16 as GPUs have it; needs no package but numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def mend_bfloat16() -> None:
    """Round fp32 to bf16 to nearest even, and multiply bf16 numbers in ``tl.dot``.

    The interpreter keeps bf16 as 16-bit patterns: it truncates, and it multiplies the patterns.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_nearest(value: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            exact = torch.from_numpy(np.array(value, dtype=np.float32))
            return exact.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        return convert(value, source, target, rounding)

    def as_float(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = np.ascontiguousarray(handle.data).view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def dot_of_numbers(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, as_float(a), as_float(b), *others)

    interpreter._convert_float = convert_nearest
    interpreter.InterpreterBuilder.create_dot = dot_of_numbers
