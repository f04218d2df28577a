"""The machine that a benchmark runs on, and the ceilings that it sets for a decoder.

Decoding reads every weight once for each token: it can't be faster than memory is read. Prefill
multiplies matrices: it can't be faster than the multiply-adds of the cores. Both are measured
here, in the same run as the engines, with the same number of threads.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvik import _core

if TYPE_CHECKING:
    from kvik.info import ModelInfo

__all__ = [
    "Ceilings",
    "Machine",
    "Roofline",
    "describe_machine",
    "measure_ceilings",
    "measure_roofline",
]


# Of a packed weight, scales included. Each takes a multiplication and an addition per token.
_BYTES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 32}


@dataclass(frozen=True)
class Machine:
    """Where the figures are from."""

    cpu: str
    cpus: int  # that this process may run on
    system: str
    python: str
    isas: list[str]  # kernels that this CPU can run


@dataclass(frozen=True)
class Roofline:
    """Ceilings of this machine, and what one model asks of it.

    Design figures: only the packed weights and the cached keys and values are counted as bytes, and
    only the products with weights as operations. What a real run adds is its own loss.
    """

    read_bytes_per_second: float  # working set of the packed weights' size
    flops_per_second: float  # on what the ISA in use multiplies for these weights
    bytes_per_token: float  # read for one decoded token
    flops_per_token: float  # computed for one token with its logits

    def best(self, other: Roofline) -> Roofline:
        """The higher ceilings of two measurements for the same model."""
        return replace(
            self,
            read_bytes_per_second=max(self.read_bytes_per_second, other.read_bytes_per_second),
            flops_per_second=max(self.flops_per_second, other.flops_per_second),
        )

    @property
    def decode_tokens_per_second(self) -> float:
        """No decoder of this precision that reads all weights for each token is faster."""
        return self.read_bytes_per_second / self.bytes_per_token

    @property
    def prefill_tokens_per_second(self) -> float:
        """No prefill of this precision is faster."""
        return self.flops_per_second / self.flops_per_token


@dataclass(frozen=True)
class Ceilings:
    """What this machine can do with a model's weights and threads."""

    read_bytes_per_second: float  # working set of the packed weights' size
    operations_per_second: dict[str, float]  # by precision: the instructions of the ISA in use

    def peak(self, precision: str) -> float:
        """Operations per second on operands of this precision, as the engine multiplies them."""
        return self.operations_per_second.get(precision, self.operations_per_second["f32"])


def measure_ceilings(info: ModelInfo) -> Ceilings:
    """Measure memory, fp32 and what the weights are multiplied in; about a second."""
    weights = max(info.packed_bytes, 1)
    peaks = {"f32": _peak("f32", info)}
    if info.weights != "f32":
        peaks[info.weights] = _peak(info.weights, info)
    return Ceilings(_core.read_bandwidth(weights, info.threads, 0.5), peaks)


def _peak(precision: str, info: ModelInfo) -> float:
    if precision in ("int8", "int4"):
        return _core.dot_peak(info.isa, info.threads, 0.3)
    measure = _core.bf16_peak if precision == "bf16" else _core.fma_peak
    return measure(info.isa, info.threads, 0.3)


def measure_roofline(info: ModelInfo, mean_position: float) -> Roofline:
    """Measure the ceilings; takes about a second.

    ``mean_position``: the average number of cached tokens while decoding.
    """
    weights = max(info.packed_bytes, 1)
    states = info.recurrent_bytes_per_position
    return Roofline(
        read_bytes_per_second=_core.read_bandwidth(weights, info.threads, 0.5),
        flops_per_second=_peak(info.weights, info),
        bytes_per_token=weights + states + (info.state_bytes_per_position - states) * mean_position,
        flops_per_token=2 * weights / _BYTES[info.weights],
    )


def describe_machine() -> Machine:
    return Machine(
        cpu=_cpu_name(),
        cpus=_cpu_count(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        isas=list(_core.available_isas()),
    )


def _cpu_count() -> int:
    import os

    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    """The model's name where the system tells it (Linux), else the architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
