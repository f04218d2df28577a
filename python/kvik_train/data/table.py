"""Examples as columns: numbers, and rows of numbers with a length of their own each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvik_train.atomic import atomic_write

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Ragged:
    """Rows of whole numbers: row i is values[offsets[i]:offsets[i + 1]]."""

    values: Array  # [sum of the lengths]
    offsets: Array  # [rows + 1]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        values = np.fromiter((item for row in rows for item in row), np.int32, int(offsets[-1]))
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Array:
        row: Array = self.values[self.offsets[index] : self.offsets[index + 1]]
        return row


Column = Array | Ragged
Table = Mapping[str, Column]


def row_count(table: Table) -> int:
    return len(next(iter(table.values())))


def save_table(table: Table, folder: Path, name: str) -> None:
    """One .npy file for each array, FOLDER/NAME.COLUMN.npy."""
    for part, array in _arrays(table):
        with atomic_write(folder / f"{name}.{part}.npy") as file:
            np.save(file, array, allow_pickle=False)


def load_table(folder: Path, name: str) -> Table:
    """What save_table wrote, through memory maps."""
    arrays = {
        path.name.removeprefix(f"{name}.").removesuffix(".npy"): np.load(
            path, mmap_mode="r", allow_pickle=False
        )
        for path in sorted(folder.glob(f"{name}.*.npy"))
    }
    table: dict[str, Column] = {}
    for part, array in arrays.items():
        column, _, kind = part.partition(".")
        if kind == "values":
            table[column] = Ragged(array, arrays[f"{column}.offsets"])
        elif not kind:
            table[column] = array
    return table


def digest(tables: Mapping[str, Table]) -> str:
    """SHA-256 of all arrays, their names, types and shapes."""
    total = hashlib.sha256()
    for name in sorted(tables):
        for part, array in _arrays(tables[name]):
            total.update(f"{name}.{part} {array.dtype.str} {array.shape}\n".encode())
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _arrays(table: Table) -> list[tuple[str, Array]]:
    found: list[tuple[str, Array]] = []
    for name in sorted(table):
        column = table[name]
        if isinstance(column, Ragged):
            found += [(f"{name}.values", column.values), (f"{name}.offsets", column.offsets)]
        else:
            found.append((name, column))
    return found
