"""What is learnt: the next token at every position of windows of the corpus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.config import TrainConfig
from kvik_train.data.sampler import evaluation_starts, window_starts
from kvik_train.data.tokens import TokenArray
from kvik_train.distributed import World
from kvik_train.errors import TrainError


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [B, S] int64
    targets: Tensor  # [B, S] int64: the token after each of ids


def batch_share(config: TrainConfig, world: World) -> int:
    """Windows in one forward pass: the batch over processes and accumulation parts."""
    shares = world.size * config.accumulate
    if config.batch_size % shares:
        raise TrainError(
            f"--batch-size {config.batch_size} cannot be shared equally by {world.size} processes "
            f"x {config.accumulate} accumulation parts; make it a multiple of {shares}"
        )
    return config.batch_size // shares


class NextToken:
    """Causal language modelling: batches of windows, and their cross-entropy."""

    def __init__(
        self,
        train: TokenArray,
        validation: TokenArray,
        context_length: int,
        config: TrainConfig,
        world: World,
    ) -> None:
        self._train = train
        self._validation = validation
        self._window = context_length + 1  # one more than the context: inputs and targets overlap
        self._config = config
        self._world = world
        self._share = batch_share(config, world)

    def batch(self, step: int, part: int) -> Batch:
        """This process's windows in accumulation part `part` of `step`."""
        start_count = len(self._train) - self._window + 1
        starts = window_starts(self._config.seed, step, self._config.batch_size, start_count)
        first = (part * self._world.size + self._world.rank) * self._share
        return self._load(self._train, starts[first : first + self._share])

    def evaluation_batches(self) -> list[list[int]]:
        """The starts of this process's validation windows, a training share at a time."""
        start_count = len(self._validation) - self._window + 1
        starts = evaluation_starts(self._config.eval_windows, start_count)
        mine = starts[self._world.rank :: self._world.size]
        return [mine[i : i + self._share] for i in range(0, len(mine), self._share)]

    def validation_batch(self, starts: list[int]) -> Batch:
        return self._load(self._validation, starts)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar."""
        logits = model(batch.ids)  # [B, S, V]
        return F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())

    def tokens_per_step(self) -> int:
        return self._config.batch_size * (self._window - 1)

    def _load(self, tokens: TokenArray, starts: list[int]) -> Batch:
        windows = torch.from_numpy(tokens.windows(starts, self._window))  # [B, S + 1]
        if self._world.device.type == "cuda":
            windows = windows.pin_memory().to(self._world.device, non_blocking=True)
        return Batch(ids=windows[:, :-1], targets=windows[:, 1:])
