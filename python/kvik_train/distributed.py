"""The processes that train together: one alone, or several started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kvik_train.errors import TrainError

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process's place among those that train together, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the processes."""
        if self.size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def sum(self, *values: torch.Tensor | float) -> list[float]:
        """Each value added up over the processes."""
        # float64 keeps counts exact and loses nothing of a float32 loss.
        total = torch.stack(
            [torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values]
        )
        if self.size > 1:
            distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Run `work` on the main process, then on the others, which find the files it wrote."""
        if self.size == 1:
            return work()
        if self.is_main:
            result = work()
            distributed.barrier()
            return result
        distributed.barrier()
        return work()

    def close(self) -> None:
        if self.size > 1:
            distributed.destroy_process_group()


def join_world(device: str) -> World:
    """Join the processes that torchrun started, or be alone when it started none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = _choose_device(device, int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, size, chosen)


def _choose_device(name: str, local_rank: int | None) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise TrainError(f"unknown device {name!r}; --device takes auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = local_rank if local_rank is not None else device.index or 0
    if index >= count:
        raise TrainError(
            f"no device cuda:{index}: torch sees {count} CUDA devices; use --device cpu"
        )
    return torch.device("cuda", index)
