"""The training loop: one for every model, device and number of processes."""

from __future__ import annotations

import contextlib
import math
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kvik_train.checkpoint import (
    Checkpoint,
    Progress,
    checkpoint_path,
    restore_model,
    save_checkpoint,
)
from kvik_train.config import RunConfig
from kvik_train.data.sampler import dropout_seed
from kvik_train.distributed import World
from kvik_train.errors import DivergedError
from kvik_train.interrupt import StopRequest
from kvik_train.objective import Objective
from kvik_train.optimizer import learning_rate_at, make_optimizer
from kvik_train.progress import Reporter, Status, perplexity
from kvik_train.runlog import RunLog

# Weight of the newest step in the speed that is shown.
_SPEED_SMOOTHING = 0.1


class Trainer:
    """Trains a model in place and keeps OUT/checkpoint.pt and OUT/log.jsonl.

    The state between two steps is the weights, the optimiser's moments, the step number, and what
    the objective keeps (of recurrent models, the state after the text read so far). Data order and
    dropout are functions of (seed, step), so that this is all a resumed run needs to continue bit
    for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: RunConfig,
        folder: Path,
        world: World,
        reporter: Reporter,
        tokens_sha256: str = "",
        resume_from: Checkpoint | None = None,
    ) -> None:
        self.config = config
        self.settings = config.train
        self.folder = folder
        self.world = world
        self.reporter = reporter
        self.objective = objective
        self.tokens_sha256 = tokens_sha256
        self.model = model.to(world.device)
        self.optimizer = make_optimizer(self.model, self.settings)
        self.progress = Progress()
        if resume_from is not None:
            restore_model(self.model, resume_from, checkpoint_path(folder))
            self.optimizer.load_state_dict(resume_from.optimizer_state)
            self.objective.restore(resume_from.objective_state)
            self.progress = resume_from.progress
        runnable = torch.compile(self.model) if self.settings.compile else self.model
        self.parallel = world.wrap(runnable)  # type: ignore[arg-type]
        self.autocast_dtype = autocast_dtype(self.settings.dtype, world.device)
        self._speed: float | None = None  # tokens/s, or examples/s

    def run(self, stop_at: int | None = None) -> int | None:
        """Train to the last step, or to step `stop_at`; a checkpoint is there afterwards.

        Returns:
            None, or the number of the signal that ended the run early.

        Raises:
            DivergedError: loss or gradient is not finite; the checkpoint is the last good one.
        """
        end = min(self.settings.steps, stop_at or self.settings.steps)
        log = RunLog(self.folder, self.progress.step) if self.world.is_main else None
        self.reporter.start(self.progress.step, self.settings.steps)
        try:
            with StopRequest() as request:
                return self._loop(end, request, log)
        finally:
            self.reporter.stop()
            if log is not None:
                log.close()

    def _loop(self, end: int, request: StopRequest, log: RunLog | None) -> int | None:
        if self.progress.step == 0:
            self._evaluate(log)
        while self.progress.step < end:
            stopped_by = self._step(request, log)
            step = self.progress.step
            last = step == self.settings.steps
            if step % self.settings.eval_interval == 0 or last:
                self._evaluate(log)
            if step % self.settings.checkpoint_interval == 0 or step == end or stopped_by:
                self._save()
            if stopped_by:
                return stopped_by
        return None

    def _step(self, request: StopRequest, log: RunLog | None) -> int | None:
        """One optimiser step. Returns the signal that asks to stop, the same on all processes."""
        step = self.progress.step
        started = time.perf_counter()
        rate = learning_rate_at(step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._accumulate_gradients(step)
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.settings.gradient_clip or math.inf
        )
        # Every process learns the same mean loss and whether any of them was asked to stop.
        total, signals, voters = self.world.sum(
            loss, float(request.signal or 0), float(request.signal is not None)
        )
        mean_loss, gradient_norm = total / self.world.size, float(norm)
        self._require_finite(mean_loss, gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        seconds = time.perf_counter() - started
        items = self.objective.items_per_step()
        self.progress = replace(
            self.progress,
            step=step + 1,
            tokens=self.progress.tokens + items,
            seconds=self.progress.seconds + seconds,
            train_loss=mean_loss,
        )
        self._show(items / seconds, rate, gradient_norm, log)
        return round(signals / voters) if voters else None

    def _accumulate_gradients(self, step: int) -> torch.Tensor:
        """Gradients of the mean loss over this process's share of the batch; returns that loss."""
        parts = self.settings.accumulate
        total = torch.zeros((), device=self.world.device)
        for part in range(parts):
            torch.manual_seed(dropout_seed(self.settings.seed, step, part, self.world.rank))
            batch = self.objective.batch(step, part)
            with self._averaging(part == parts - 1):
                with self._autocast():
                    loss = self.objective.loss(self.parallel, batch) / parts
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _averaging(self, last_part: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once a step, with the last part."""
        if isinstance(self.parallel, DistributedDataParallel) and not last_part:
            return self.parallel.no_sync()
        return contextlib.nullcontext()

    def _autocast(self) -> AbstractContextManager[None]:
        enabled = self.autocast_dtype != torch.float32
        return torch.autocast(self.world.device.type, self.autocast_dtype, enabled=enabled)

    def _require_finite(self, loss: float, gradient_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {gradient_norm}"
        path = checkpoint_path(self.folder)
        kept = (
            f"{path} is the last good checkpoint" if path.is_file() else "no checkpoint was saved"
        )
        raise DivergedError(
            f"training diverged at step {self.progress.step + 1}: the {what}; {kept}; "
            "try a smaller --learning-rate or a longer --warmup"
        )

    @torch.no_grad()
    def _evaluate(self, log: RunLog | None) -> None:
        """Mean validation loss over the same rows every time, on all processes together."""
        self.model.eval()
        total = weight = 0.0
        for rows in self.objective.evaluation_batches():
            batch = self.objective.validation_batch(rows)
            with self._autocast():
                # Not through DDP: processes may have different numbers of batches.
                loss = self.objective.loss(self.model, batch)
            counts = self.objective.weight(batch, len(rows))
            total += float(loss) * counts
            weight += counts
        self.model.train()
        total, weight = self.world.sum(total, weight)
        loss_mean = total / weight
        self._require_finite(loss_mean, 0.0)
        self.progress = replace(self.progress, validation_loss=loss_mean)
        self.reporter.evaluated(self.progress.step, loss_mean, self.objective.perplexity)
        if log is not None:
            more = {"perplexity": perplexity(loss_mean)} if self.objective.perplexity else {}
            log.write(
                "eval",
                self.progress.step,
                loss=loss_mean,
                **more,
                seconds=round(self.progress.seconds, 3),
            )

    def _save(self) -> None:
        objective_state = self.objective.state()
        if self.world.is_main:
            save_checkpoint(
                self.folder,
                Checkpoint(
                    config=self.config,
                    progress=self.progress,
                    tokens_sha256=self.tokens_sha256,
                    model_state=self.model.state_dict(),
                    optimizer_state=self.optimizer.state_dict(),
                    objective_state=objective_state,
                ),
            )

    def _show(self, speed: float, rate: float, norm: float, log: RunLog | None) -> None:
        old = self._speed if self._speed is not None else speed
        self._speed = old + _SPEED_SMOOTHING * (speed - old)
        step, loss = self.progress.step, self.progress.train_loss or 0.0
        unit = self.objective.unit
        self.reporter.update(Status(step, self.settings.steps, loss, self._speed, unit))
        if log is not None and (step % self.settings.log_interval == 0 or step == 1):
            log.write(
                "train",
                step,
                loss=loss,
                learning_rate=rate,
                gradient_norm=norm,
                **{
                    unit: self.progress.tokens,
                    f"{unit}_per_second": round(self._speed, 1),
                },
                seconds=round(self.progress.seconds, 3),
            )


def autocast_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of the matrix products: "auto" takes bfloat16 where the hardware multiplies it."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32
