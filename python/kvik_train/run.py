"""One run from its settings to its folder: data, model, loop, files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kvik_train.checkpoint import (
    Checkpoint,
    Progress,
    checkpoint_path,
    read_checkpoint,
    save_config,
    start_from,
)
from kvik_train.config import RunConfig, TrainConfig, check_resumable
from kvik_train.data.prepare import Report
from kvik_train.distributed import World, join_world
from kvik_train.errors import TrainError
from kvik_train.evaluation.scores import Score, save_scores, scores_path
from kvik_train.models import build_model, check_task
from kvik_train.objective import batch_share
from kvik_train.progress import Reporter, make_reporter
from kvik_train.runlog import plot_losses
from kvik_train.tasks import Prepared, Task, find_task
from kvik_train.trainer import Trainer, autocast_dtype


@dataclass(frozen=True)
class Outcome:
    progress: Progress
    stopped_by: int | None  # the signal that ended the run early
    scores: tuple[Score, ...] = ()  # of a run that came to its end


def run_training(config: RunConfig, folder: Path, resume_from: Checkpoint | None = None) -> Outcome:
    """Train as `config` says into `folder`, from the start or on from that folder's checkpoint."""
    settings, task = config.train, find_task(config.task)
    check_task(config.family, config.task)
    _set_up_torch(settings)
    world = join_world(settings.device)
    reporter = make_reporter(world.is_main)
    try:
        if resume_from is not None:
            check_resumable(resume_from.config, config)
        elif world.is_main:
            # Whatever is wrong with the settings shows before anything is overwritten.
            task.check(config)
            batch_share(settings, world)
            _discard_run(folder)
        _make_folder(folder)
        prepared = world.main_first(
            lambda: _prepare(task, config, folder, reporter.message, resume_from)
        )
        config = fitted(config, prepared)
        trainer = _make_trainer(task, config, folder, world, reporter, prepared, resume_from)
        if world.is_main:
            save_config(folder, config)
            _announce(config, trainer, reporter)
        with _explained(settings.compile):
            stopped_by = trainer.run()
        scores: list[Score] = []
        if world.is_main:
            plot_losses(folder / "log.jsonl", folder / "loss.png")
            if stopped_by is None:
                scores = task.scores(trainer.model.eval(), config, folder, prepared)
                save_scores(folder, trainer.progress.step, scores)
            _summarise(folder, trainer.progress, settings, stopped_by, reporter)
            for score in scores:
                reporter.message(score.describe())
        return Outcome(trainer.progress, stopped_by, tuple(scores))
    finally:
        world.close()


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint of a run in `folder`, or None where there is no run."""
    if folder.exists() and not folder.is_dir():
        raise TrainError(f"{folder} is not a folder; choose another --out")
    path = checkpoint_path(folder)
    return read_checkpoint(path) if path.is_file() else None


def _set_up_torch(settings: TrainConfig) -> None:
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        # cuBLAS reads this when it is initialised.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(
            f"cannot make the folder {folder}: {error.strerror}; choose another --out"
        ) from error


def _discard_run(folder: Path) -> None:
    """Remove what an earlier run left, so that its checkpoint is never taken for this run's."""
    for name in ("checkpoint.pt", "config.json", "log.jsonl", "loss.png", scores_path(folder).name):
        (folder / name).unlink(missing_ok=True)


def _prepare(
    task: Task, config: RunConfig, folder: Path, report: Report, resumed: Checkpoint | None
) -> Prepared:
    # A resumed run goes on with the data that it has, whatever became of where it came from.
    prepared = task.load(folder) if resumed is not None else None
    if prepared is None:
        prepared = task.prepare(config, folder, report)
    if resumed is not None and prepared.sha256 != resumed.tokens_sha256:
        raise TrainError(
            f"cannot resume: the tokens in {folder / 'data'} are not those of the checkpoint "
            "(the corpus has changed); start a new run in another --out"
        )
    return prepared


def fitted(config: RunConfig, prepared: Prepared) -> RunConfig:
    """The settings with what only the data can say: its labels, and the tokenizer's size."""
    model = config.model
    if prepared.vocab_size is not None and config.base is None:
        model = replace(model, vocab_size=prepared.vocab_size)
    return replace(config, model=model, labels=prepared.labels)


def _make_trainer(
    task: Task,
    config: RunConfig,
    folder: Path,
    world: World,
    reporter: Reporter,
    prepared: Prepared,
    resume_from: Checkpoint | None,
) -> Trainer:
    objective = task.objective(config, folder, prepared, world)
    torch.manual_seed(config.train.seed)  # the same initial weights on every process
    model = build_model(config.model, config.task, config.labels)
    if config.base is not None and resume_from is None:
        path = checkpoint_path(Path(config.base))
        start_from(model, read_checkpoint(path), path)
    return Trainer(model, objective, config, folder, world, reporter, prepared.sha256, resume_from)


@contextmanager
def _explained(compiled: bool) -> Iterator[None]:
    """Turn the failures of torch that a user can mend into errors that say how."""
    compiler_errors: tuple[type[Exception], ...] = ()
    if compiled:  # the compiler takes seconds to import
        from torch._dynamo.exc import TorchDynamoException

        compiler_errors = (TorchDynamoException,)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"out of memory: {_first_line(error)}; use a larger --accumulate, a smaller "
            "--batch-size or a smaller --context"
        ) from error
    except compiler_errors as error:
        raise TrainError(
            f"torch.compile failed: {_first_line(error)}; train without --compile"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _announce(config: RunConfig, trainer: Trainer, reporter: Reporter) -> None:
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    device = trainer.world.device
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    dtype = str(autocast_dtype(config.train.dtype, device)).removeprefix("torch.")
    others = f" x {trainer.world.size} processes" if trainer.world.size > 1 else ""
    start = f" from step {trainer.progress.step}" if trainer.progress.step else ""
    task = "" if config.base is None else f" fine-tuned to {config.task}"
    reporter.message(
        f"{config.preset}{task}: {count / 1e6:.2f} M parameters, {config.train.steps} steps of "
        f"{trainer.objective.items_per_step():,} {trainer.objective.unit}, {where}{others}, "
        f"{dtype}{start}"
    )


def _summarise(
    folder: Path,
    progress: Progress,
    settings: TrainConfig,
    stopped_by: int | None,
    reporter: Reporter,
) -> None:
    if stopped_by is not None:
        reporter.message(
            f"interrupted after step {progress.step} of {settings.steps}; saved "
            f"{checkpoint_path(folder)}; continue with: kvik train --out {folder} --resume"
        )
        return
    reporter.message(
        f"trained {progress.step} steps in {progress.seconds:.0f} s; saved "
        f"{checkpoint_path(folder)} and {folder / 'loss.png'}"
    )
