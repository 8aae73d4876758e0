"""The Triton kernels as numpy: run with TRITON_INTERPRET=1, as `test_interpreted.py` does in a process of its own."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def to_fp32(handle: TensorHandle) -> np.ndarray:
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data.astype(np.float32)
        return torch.from_numpy(handle.data.copy()).view(torch.bfloat16).float().numpy()

    def cast(self: InterpreterBuilder, source: TensorHandle, dtype: tl.dtype) -> TensorHandle:
        """Triton 3.9 mistakes bf16 numbers for their bits in casts from integers, truncates, and loses small ones."""
        if dtype.scalar != tl.bfloat16:
            if source.dtype.scalar == tl.bfloat16:
                source = TensorHandle(to_fp32(source), tl.float32)
            return original_cast(self, source, dtype)
        data = torch.from_numpy(np.ascontiguousarray(to_fp32(source))).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(data.reshape(source.data.shape), tl.bfloat16)

    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, *args: object) -> TensorHandle:
        """Nor does it multiply bf16 matrices; and numpy has no fast product of integers."""
        if a.dtype.scalar == tl.int8:  # exact in fp64
            product = (a.data.astype(np.float64) @ b.data.astype(np.float64)).astype(np.int32)
        else:
            product = to_fp32(a) @ to_fp32(b)
        return TensorHandle(product + d.data, d.dtype.scalar)

    original_cast = InterpreterBuilder.cast_impl
    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_fp_to_fp = lambda self, source, dtype, mode: self.cast_impl(source, dtype)
    InterpreterBuilder.create_dot = dot
