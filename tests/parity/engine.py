"""Run ONNX models with the engine, many per process.

Today this drives the C++ program ``kvik_run_probe``; what tests see is :func:`run_batch` alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
Array = NDArray[np.generic]

_INT4 = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}
_NAMED = {"bfloat16": ml_dtypes.bfloat16, **_INT4}


@dataclass(frozen=True)
class Case:
    """A model and the inputs to run it on, by name."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, Array]


@dataclass
class Result:
    """Outputs by name, in order, or the error's code and message."""

    outputs: dict[str, Array] = field(default_factory=dict)
    error: str | None = None

    @property
    def unsupported(self) -> bool:
        return self.error is not None and self.error.startswith("unsupported")


def find_probe() -> Path | None:
    """The probe that ``KVIK_RUN_PROBE`` names, else the newest one under ``build/``."""
    named = os.environ.get("KVIK_RUN_PROBE")
    if named:
        return Path(named)
    found = sorted(ROOT.glob("build/*/tests/cpp/kvik_run_probe"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def pack_nibbles(array: Array) -> bytes:
    """Two elements a byte, the first in the low nibble."""
    values = array.astype(np.int8).reshape(-1).view(np.uint8) & 0xF
    if values.size % 2:
        values = np.append(values, np.uint8(0))
    return bytes(values[0::2] | (values[1::2] << 4))


def unpack_nibbles(data: bytes, count: int, dtype: str) -> Array:
    packed = np.frombuffer(data, np.uint8)
    values = np.stack([packed & 0xF, packed >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
    if dtype == "int4":
        values = np.where(values >= 8, values - 16, values).astype(np.int8)
    return values.astype(_INT4[dtype])


def encode(name: str, array: Array) -> bytes:
    header = " ".join([name, array.dtype.name, *map(str, array.shape)]) + "\n"
    data = pack_nibbles(array) if array.dtype.name in _INT4 else np.ascontiguousarray(array).tobytes()
    return header.encode() + data


def decode(data: bytes) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        name, dtype, *dims = data[at:end].decode().split(" ")
        shape = tuple(map(int, dims))
        count = int(np.prod(shape, dtype=np.int64))
        at = end + 1
        if dtype in _INT4:
            size = (count + 1) // 2
            tensors[name] = unpack_nibbles(data[at : at + size], count, dtype).reshape(shape)
        else:
            numpy_dtype = np.dtype(_NAMED.get(dtype, dtype))
            size = count * numpy_dtype.itemsize
            tensors[name] = np.frombuffer(data[at : at + size], numpy_dtype).reshape(shape)
        at += size
    return tensors


def run_batch(cases: Iterable[Case], folder: Path, probe: Path | None = None) -> dict[str, Result]:
    """Run every case, in one process; results by the case's name.

    Raises ``RuntimeError`` with the program's standard error when the process dies.
    """
    program = probe or find_probe()
    if program is None:
        raise RuntimeError("kvik_run_probe is not built: cmake --build build/dev")
    prefixes: dict[str, Path] = {}
    for number, case in enumerate(cases):
        prefix = folder / f"{number:05d}"
        prefixes[case.name] = prefix
        prefix.with_suffix(".onnx").write_bytes(case.model.SerializeToString())
        encoded = b"".join(encode(name, array) for name, array in case.inputs.items())
        prefix.with_suffix(".in").write_bytes(encoded)
    listing = folder / "list"
    listing.write_text("".join(f"{prefix}\n" for prefix in prefixes.values()))
    done = subprocess.run([program, listing], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = [name for name, p in prefixes.items() if not p.with_suffix(".out").exists()]
        where = f" in {last[0]}" if last else ""
        raise RuntimeError(f"the probe died ({done.returncode}){where}: {done.stderr[-4000:]}")
    return {name: _read_result(prefix.with_suffix(".out")) for name, prefix in prefixes.items()}


def _read_result(path: Path) -> Result:
    status, _, rest = path.read_bytes().partition(b"\n")
    if status == b"ok":
        return Result(outputs=decode(rest))
    return Result(error=status.decode(errors="replace").removeprefix("error "))
