"""Language modelling: the next token at every position of windows of a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.config import RunConfig, TrainConfig
from kvik_train.data.corpus import NAMED
from kvik_train.data.prepare import (
    PreparedData,
    Report,
    check_data,
    load_prepared,
    open_split,
    prepare,
    tokenizer_path,
)
from kvik_train.data.sampler import evaluation_starts, noise, window_starts
from kvik_train.data.tokens import TokenArray
from kvik_train.distributed import World
from kvik_train.evaluation.ngram import ORDER, NGram
from kvik_train.evaluation.scores import Score
from kvik_train.objective import Objective
from kvik_train.runlog import read_log
from kvik_train.tasks.base import Prepared, Task
from kvik_train.tokenizer import load_tokenizer

# Windows in which a recurrent model keeps its state before it starts anew elsewhere.
CARRIED_WINDOWS = 8
_SCORED_WINDOWS = 256
_COUNTED_TOKENS = 20_000_000  # of the text, at most, by the n-gram model


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [B, S] int64
    targets: Tensor  # [B, S] int64: the token after each of ids


class NextToken(Objective):
    """Causal language modelling: batches of windows, and their cross-entropy."""

    unit = "tokens"
    perplexity = True

    def __init__(
        self,
        train: TokenArray,
        validation: TokenArray,
        context_length: int,
        config: TrainConfig,
        world: World,
    ) -> None:
        super().__init__(config, world)
        self._train = train
        self._validation = validation
        self._window = context_length + 1  # one more than the context: inputs and targets overlap

    def batch(self, step: int, part: int) -> Batch:
        start_count = len(self._train) - self._window + 1
        starts = window_starts(self._config.seed, step, self._config.batch_size, start_count)
        return self._load(self._train, starts[self._slice(part)])

    def evaluation_batches(self) -> list[list[int]]:
        start_count = len(self._validation) - self._window + 1
        return self._shared_out(evaluation_starts(self._config.eval_windows, start_count))

    def validation_batch(self, rows: list[int]) -> Batch:
        return self._load(self._validation, rows)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar."""
        return next_token_loss(model(batch.ids), batch.targets)

    def items_per_step(self) -> int:
        return self._config.batch_size * (self._window - 1)

    def _load(self, tokens: TokenArray, starts: list[int]) -> Batch:
        windows = torch.from_numpy(tokens.windows(starts, self._window))  # [B, S + 1]
        if self._world.device.type == "cuda":
            windows = windows.pin_memory().to(self._world.device, non_blocking=True)
        return Batch(ids=windows[:, :-1], targets=windows[:, 1:])


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Of logits [B, S, V] and targets [B, S]."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class CarriedBatch(Batch):
    rows: slice  # of the step's batch
    fresh: Tensor  # [B] bool: rows that start with a state of zeros


class TruncatedNextToken(NextToken):
    """Truncated back-propagation through time (Williams and Peng 1990) for recurrent models.

    Each row of the batch reads CARRIED_WINDOWS windows one after the other, with the state that the
    last one left and gradients through one window; then it jumps to another place, with a state of
    zeros, from which every text starts when the model is used. Rows jump at different steps.
    Validation windows start from zeros, as a GPT's do.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state: Tensor | None = None  # [K, N, batch_size, H]; this process's rows are valid

    def batch(self, step: int, part: int) -> CarriedBatch:
        rows = self._slice(part)
        context = self._window - 1
        length = CARRIED_WINDOWS * context + 1
        # A text shorter than a whole journey is read from one place.
        start_count = max(1, len(self._train) - length + 1)
        last = len(self._train) - self._window
        starts, fresh = [], []
        for row in range(rows.start, rows.stop):
            journey, window = divmod(step + row, CARRIED_WINDOWS)
            start = int(noise(self._config.seed, journey, row + 1)[row] * start_count)
            starts.append(min(start + window * context, last))
            fresh.append(window == 0 or step == 0)
        loaded = self._load(self._train, starts)
        return CarriedBatch(loaded.ids, loaded.targets, rows, torch.tensor(fresh))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if not isinstance(batch, CarriedBatch):
            return super().loss(model, batch)
        if self._state is None:
            plain: Any = getattr(model, "module", model)
            self._state = plain.zero_state(self._config.batch_size)
        before = self._state[:, :, batch.rows].to(batch.ids.device)
        before = before.masked_fill(batch.fresh.to(before.device)[None, None, :, None], 0.0)
        logits, after = model(batch.ids, before)
        self._state[:, :, batch.rows] = after.detach().float()
        return next_token_loss(logits, batch.targets)

    def state(self) -> Tensor | None:
        if self._state is None or self._world.size == 1:
            return self._state
        mine = torch.zeros_like(self._state)
        for part in range(self._config.accumulate):
            rows = self._slice(part)
            mine[:, :, rows] = self._state[:, :, rows]
        torch.distributed.all_reduce(mine)
        return mine

    def restore(self, state: Tensor | None) -> None:
        self._state = None if state is None else state.clone().to(self._world.device)


class LanguageModelling(Task):
    name = "lm"
    use = "generate"
    sources = NAMED

    def check(self, config: RunConfig) -> None:
        window = config.model.context_length + 1
        check_data(config.data, config.train.validation_fraction, window)

    def prepare(self, config: RunConfig, folder: Path, report: Report) -> PreparedData:
        tokenizer = None
        if config.base is not None:
            tokenizer = load_tokenizer(tokenizer_path(Path(config.base)))
        return prepare(config.data, folder, report, tokenizer)

    def load(self, folder: Path) -> PreparedData | None:
        return load_prepared(folder)

    def objective(
        self, config: RunConfig, folder: Path, prepared: Prepared, world: World
    ) -> NextToken:
        kind = TruncatedNextToken if config.family == "rnn" else NextToken
        context = config.model.context_length
        return kind(*_splits(config, folder, prepared), context, config.train, world)

    @torch.no_grad()
    def scores(
        self, model: nn.Module, config: RunConfig, folder: Path, prepared: Prepared
    ) -> list[Score]:
        """Loss on windows of the held-out text, beside an n-gram model of the training text."""
        train, validation = _splits(config, folder, prepared)
        window = config.model.context_length + 1
        starts = evaluation_starts(_SCORED_WINDOWS, len(validation) - window + 1)
        windows = validation.windows(starts, window)  # [W, S + 1]
        device = next(model.parameters()).device
        total = 0.0
        for part in np.array_split(windows, max(1, len(windows) // 16)):
            tensor = torch.from_numpy(part).to(device)
            total += float(next_token_loss(model(tensor[:, :-1]), tensor[:, 1:])) * len(part)
        text = train.windows([0], min(len(train), _COUNTED_TOKENS))[0]
        ngram = NGram(text, config.model.vocab_size)
        loss, count = total / len(windows), windows[:, 1:].size
        name = {1: "unigrams", 2: "bigrams", ORDER: "trigrams"}[ngram.order]
        found = [Score("loss", loss, ngram.loss(windows), name, count, "tokens", "loss")]
        if config.base is not None:
            first = next(e for e in read_log(folder / "log.jsonl") if e["event"] == "eval")
            latest = [e for e in read_log(folder / "log.jsonl") if e["event"] == "eval"][-1]
            found.append(
                Score("validation loss", latest["loss"], first["loss"], "before fine-tuning",
                      config.train.eval_windows, "windows", "loss")
            )  # fmt: skip
        return found


def _splits(config: RunConfig, folder: Path, prepared: Prepared) -> tuple[TokenArray, TokenArray]:
    assert isinstance(prepared, PreparedData)
    window = config.model.context_length + 1
    return open_split(prepared, folder, config.train.validation_fraction, window)
