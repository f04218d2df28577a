"""What is learnt: batches that are a function of the step, and their loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kvik_train.config import TrainConfig
from kvik_train.data.sampler import evaluation_starts, example_indices
from kvik_train.data.table import Table, row_count
from kvik_train.distributed import World
from kvik_train.errors import TrainError


def batch_share(config: TrainConfig, world: World) -> int:
    """Rows in one forward pass: the batch over processes and accumulation parts."""
    shares = world.size * config.accumulate
    if config.batch_size % shares:
        raise TrainError(
            f"--batch-size {config.batch_size} cannot be shared equally by {world.size} processes "
            f"x {config.accumulate} accumulation parts; make it a multiple of {shares}"
        )
    return config.batch_size // shares


class Objective(ABC):
    """Batches and their loss, for one process of those that train together."""

    unit = "examples"  # what items_per_step counts
    perplexity = False  # whether exp(loss) says something

    def __init__(self, config: TrainConfig, world: World) -> None:
        self._config = config
        self._world = world
        self._share = batch_share(config, world)

    @abstractmethod
    def batch(self, step: int, part: int) -> Any:
        """This process's rows in accumulation part `part` of `step`."""

    @abstractmethod
    def evaluation_batches(self) -> list[list[int]]:
        """This process's validation rows, a training share at a time."""

    @abstractmethod
    def validation_batch(self, rows: list[int]) -> Any: ...

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss in nats, a scalar."""

    def weight(self, batch: Any, rows: int) -> float:
        """What the batch counts in the mean over all of them; by default its rows."""
        return rows

    def items_per_step(self) -> int:
        return self._config.batch_size

    def state(self) -> Tensor | None:
        """What a resumed run needs beside the weights; all processes call this together."""
        return None

    def restore(self, state: Tensor | None) -> None:  # noqa: B027  (most have none)
        """Take back what `state` gave."""

    def _slice(self, part: int) -> slice:
        """Which rows of a step's batch are this process's in a part."""
        first = (part * self._world.size + self._world.rank) * self._share
        return slice(first, first + self._share)

    def _shared_out(self, rows: list[int]) -> list[list[int]]:
        mine = rows[self._world.rank :: self._world.size]
        return [mine[i : i + self._share] for i in range(0, len(mine), self._share)]


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and what its outputs should have been."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    def to(self, world: World) -> Batch:
        if world.device.type == "cpu":
            return self
        return Batch(
            tuple(item.to(world.device) for item in self.inputs),
            tuple(item.to(world.device) for item in self.targets),
        )


class ExampleObjective(Objective):
    """Epochs over a table of examples."""

    def __init__(self, tables: Mapping[str, Table], config: TrainConfig, world: World) -> None:
        super().__init__(config, world)
        self.tables = tables

    def batch(self, step: int, part: int) -> Batch:
        count = row_count(self.tables["train"])
        rows = example_indices(self._config.seed, step, self._config.batch_size, count)
        mine = self._slice(part)
        return self.collate("train", rows[mine], (step, mine)).to(self._world)

    def evaluation_batches(self) -> list[list[int]]:
        count = row_count(self.tables["validation"])
        return self._shared_out(evaluation_starts(self._config.eval_windows, count))

    def validation_batch(self, rows: list[int]) -> Batch:
        return self.collate("validation", rows).to(self._world)

    @abstractmethod
    def collate(
        self, split: str, rows: Sequence[int], drawn: tuple[int, slice] | None = None
    ) -> Batch:
        """Rows of a table as one batch.

        Args:
            drawn: the step, and which part of its batch the rows are, where random changes are to
                be made; None for the same batch every time.
        """

    def all_batches(
        self, size: int = 64, limit: int | None = None
    ) -> list[tuple[list[int], Batch]]:
        """The validation examples, or `limit` of them, in their order: (rows, batch)."""
        count = row_count(self.tables["validation"])
        rows = evaluation_starts(count if limit is None else limit, count)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [(part, self.validation_batch(part)) for part in parts]
