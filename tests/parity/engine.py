"""Run ONNX models with the engine, many per process, with every element type of ONNX.

Drives the C++ program ``kvik_run_probe`` (kvik::Session), since numpy has no bfloat16 and no int4
of its own to pass through the Python package.
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


def find_probe() -> Path:
    """The probe of the build that these tests belong to; ``KVIK_RUN_PROBE`` names another."""
    named = os.environ.get("KVIK_RUN_PROBE")
    preset = "asan" if os.environ.get("KVIK_TEST_SANITIZED") else "dev"
    probe = Path(named) if named else ROOT / "build" / preset / "tests" / "cpp" / "kvik_run_probe"
    if not probe.exists():
        raise FileNotFoundError(f"{probe} is not built: cmake --build --preset {preset}")
    return probe


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
    data = (
        pack_nibbles(array) if array.dtype.name in _INT4 else np.ascontiguousarray(array).tobytes()
    )
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


def run_batch(cases: Iterable[Case], folder: Path, *, optimize: bool) -> dict[str, Result]:
    """Run every case, in one process; results by the case's name.

    Args:
        cases: What to run; names are unique.
        folder: For the files that pass models and tensors. Must exist.
        optimize: False runs each graph as the file spells it, nothing fused or folded.

    Raises:
        RuntimeError: The process died; the message names the case and what it printed.
    """
    prefixes: dict[str, Path] = {}
    for number, case in enumerate(cases):
        prefix = folder / f"{number:05d}"
        prefixes[case.name] = prefix
        prefix.with_suffix(".onnx").write_bytes(case.model.SerializeToString())
        encoded = b"".join(encode(name, array) for name, array in case.inputs.items())
        prefix.with_suffix(".in").write_bytes(encoded)
    listing = folder / "list"
    listing.write_text("".join(f"{prefix}\n" for prefix in prefixes.values()))
    command = [find_probe(), "optimized" if optimize else "plain", listing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
