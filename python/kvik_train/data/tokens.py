"""Token arrays on disk: written in a stream, read through a memory map."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from kvik_train.errors import TrainError


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest type that holds every id; little-endian whatever the machine."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenWriter:
    """Appends ids to an open file, counting and hashing them; holds no more than one call's ids."""

    def __init__(self, file: BinaryIO, vocab_size: int) -> None:
        self.dtype = token_dtype(vocab_size)
        self.count = 0
        self._file = file
        self._vocab_size = vocab_size
        self._digest = hashlib.sha256()

    def append(self, ids: Sequence[int]) -> None:
        wide = np.asarray(ids, dtype=np.int64)
        if wide.size and not 0 <= wide.min() <= wide.max() < self._vocab_size:
            raise ValueError(f"token id outside the vocabulary of {self._vocab_size}")
        data = wide.astype(self.dtype).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self.count += len(wide)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class TokenArray:
    """A stretch of tokens in a file, from which windows are copied as they are needed."""

    def __init__(self, tokens: npt.NDArray[np.unsignedinteger]) -> None:
        self._tokens = tokens

    @classmethod
    def open(cls, path: Path, dtype: str, count: int) -> TokenArray:
        expected = np.dtype(dtype).itemsize * count
        found = path.stat().st_size if path.is_file() else 0
        if found != expected or count == 0:
            raise TrainError(
                f"{path} holds {found} bytes, expected {expected}; delete it to prepare it again"
            )
        return cls(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))

    def __len__(self) -> int:
        return len(self._tokens)

    def split(self, tail_fraction: float) -> tuple[TokenArray, TokenArray]:
        """The array without its tail, and the tail: training and validation tokens."""
        cut = len(self) - int(len(self) * tail_fraction)
        return TokenArray(self._tokens[:cut]), TokenArray(self._tokens[cut:])

    def windows(self, starts: Sequence[int], length: int) -> npt.NDArray[np.int64]:
        """The `length` tokens from each start: [len(starts), length]."""
        out = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(out, starts, strict=True):
            row[:] = self._tokens[start : start + length]
        return out
