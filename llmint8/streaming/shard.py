"""A safetensors file that is written tensor after tensor, the same bytes as safetensors itself writes."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

# In the order in which safetensors writes them: the most aligned first.
_DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_BLOCK = 1 << 24


class Shard:
    """A file whose tensors are known beforehand and come in any order. It has its name once `close` has succeeded.

    Attributes:
        names: Names of the tensors.
        size: Size of the file, in bytes.
    """

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        """Lays the file out; nothing is written yet.

        Args:
            file: Where it is to be.
            tensors: Tensors by name, of which only shapes and dtypes are used.

        Raises:
            ValueError: safetensors does not know a dtype.
        """
        self._file = file
        self._unfinished = file.with_name(f"{file.name}.part")
        self._descriptor: int | None = None
        if unknown := [f"{name} is {t.dtype}" for name, t in tensors.items() if t.dtype not in _DTYPES]:
            raise ValueError(f"{unknown[0]}, which cannot be stored in a safetensors file")
        rank = {dtype: i for i, dtype in enumerate(_DTYPES)}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._offsets: dict[str, int] = {}
        end = 0
        for name in sorted(tensors, key=lambda name: (rank[tensors[name].dtype], name.encode())):
            tensor = tensors[name]
            start, end = end, end + tensor.nbytes
            self._offsets[name] = start
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._start = struct.pack("<Q", len(text)) + text
        self.names = frozenset(tensors)
        self._missing = set(tensors)
        self.size = len(self._start) + end

    def is_finished(self) -> bool:
        """Whether the file is there already, from an earlier run with the same tensors."""
        if not self._file.is_file() or self._file.stat().st_size != self.size:
            return False
        with self._file.open("rb") as stream:
            return stream.read(len(self._start)) == self._start

    def __enter__(self) -> Self:
        """Opens the file, under another name until it is complete."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(self._unfinished, flags, 0o666)
        self._write_at(0, memoryview(self._start))
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor to its place.

        Args:
            name: One of those announced.
            tensor: A tensor of the shape and dtype announced.

        Raises:
            OSError: It cannot be written, for want of space, say.
        """
        self._missing.remove(name)
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        self._write_at(len(self._start) + self._offsets[name], data.data)

    def close(self) -> None:
        """Finishes the file, once its content has reached the disk.

        Raises:
            OSError: It cannot be written.
            ValueError: A tensor was not written.
        """
        if self._missing:
            raise ValueError(f"{self._file.name} lacks {sorted(self._missing)[0]}")
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
        self._unfinished.replace(self._file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes the file, or leaves it unfinished after an error."""
        if kind is None:
            self.close()
        elif self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write_at(self, position: int, data: memoryview) -> None:
        assert self._descriptor is not None
        os.lseek(self._descriptor, position, os.SEEK_SET)
        try:
            while data:
                data = data[os.write(self._descriptor, data[:_BLOCK]) :]
        except OSError as error:  # which does not say what it was
            raise OSError(error.errno, error.strerror, str(self._file)) from error
