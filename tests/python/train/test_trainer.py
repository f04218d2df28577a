"""The loop: it learns, it resumes bit for bit, and it stops the way it says."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kvik_train.checkpoint import checkpoint_path, load_checkpoint, read_checkpoint
from kvik_train.config import RunConfig
from kvik_train.errors import DivergedError
from kvik_train.interrupt import StopRequest
from kvik_train.runlog import plot_losses, read_log
from kvik_train.tasks.lm import Batch, NextToken
from kvik_train.trainer import Trainer, autocast_dtype

MakeTrainer = Callable[..., Trainer]


def with_train(config: RunConfig, **changes: object) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))  # type: ignore[arg-type]


def same_state(left: Trainer, right: Trainer) -> bool:
    """Bitwise equality of weights and optimiser state."""
    a, b = left.model.state_dict(), right.model.state_dict()
    weights = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    moments_a, moments_b = (t.optimizer.state_dict()["state"] for t in (left, right))
    moments = all(
        torch.equal(moments_a[i][name], moments_b[i][name])
        for i in moments_a
        for name in ("exp_avg", "exp_avg_sq", "step")
    )
    return weights and moments and moments_a.keys() == moments_b.keys()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop_at", [10, 7])
def test_resume_is_bit_for_bit(
    accumulate: int, stop_at: int, tiny_run: RunConfig, make_trainer: MakeTrainer
) -> None:
    config = with_train(tiny_run, accumulate=accumulate)
    straight = make_trainer(config, "straight")
    straight.run()
    first = make_trainer(config, "parts")
    first.run(stop_at=stop_at)
    torch.manual_seed(987)  # the generator's state at resumption must not matter
    saved = read_checkpoint(checkpoint_path(first.folder))
    assert saved.progress.step == stop_at
    second = make_trainer(config, "parts", saved)
    assert same_state(first, second)
    second.run()
    assert same_state(straight, second)
    assert not same_state(straight, first)
    logs = [
        [(e["event"], e["step"], e["loss"]) for e in read_log(t.folder / "log.jsonl")]
        for t in (straight, second)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("change", [{"seed": 2}, {"dropout": 0.0}])
def test_seed_and_dropout_change_the_weights(
    change: dict[str, float], tiny_run: RunConfig, make_trainer: MakeTrainer
) -> None:
    """So that the equality above says something: these choices do reach the weights."""
    other = (
        with_train(tiny_run, **change)
        if "seed" in change
        else replace(tiny_run, model=replace(tiny_run.model, **change))
    )
    left, right = make_trainer(tiny_run, "left"), make_trainer(other, "right")
    left.run(stop_at=2)
    right.run(stop_at=2)
    assert not same_state(left, right)


def test_accumulation_gives_the_gradient_of_the_whole_batch(
    tiny_run: RunConfig, make_trainer: MakeTrainer
) -> None:
    config = replace(tiny_run, model=replace(tiny_run.model, dropout=0.0))
    whole = make_trainer(config, "whole")
    parts = make_trainer(with_train(config, accumulate=4), "parts")
    losses = [trainer._accumulate_gradients(3).item() for trainer in (whole, parts)]
    # Sums of a few hundred float32 terms of the gradient's size, in another order.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        scale = a.grad.abs().max().item()
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-5 * scale)


def test_it_learns_and_logs(tiny_run: RunConfig, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(with_train(tiny_run, steps=150, eval_interval=50, log_interval=50))
    assert trainer.run() is None
    entries = read_log(trainer.folder / "log.jsonl")
    evals = {e["step"]: e for e in entries if e["event"] == "eval"}
    assert list(evals) == [0, 50, 100, 150]
    assert evals[0]["loss"] == pytest.approx(math.log(trainer.config.model.vocab_size), abs=0.1)
    assert evals[150]["loss"] < 0.5 * evals[0]["loss"]
    assert evals[150]["perplexity"] == pytest.approx(math.exp(evals[150]["loss"]))
    trains = [e for e in entries if e["event"] == "train"]
    assert [e["step"] for e in trains] == [1, 50, 100, 150]
    assert trains[-1]["tokens"] == 150 * 4 * 16
    assert all(e["gradient_norm"] > 0 and e["tokens_per_second"] > 0 for e in trains)
    plot_losses(trainer.folder / "log.jsonl", trainer.folder / "loss.png")
    assert (trainer.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_is_the_mean_over_windows(
    tiny_run: RunConfig, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(tiny_run)
    trainer._evaluate(None)
    batches = trainer.objective.evaluation_batches()
    assert [len(batch) for batch in batches] == [4, 1]  # 5 windows; the last batch is short
    trainer.model.eval()
    with torch.no_grad():
        each = [
            trainer.objective.loss(trainer.model, trainer.objective.validation_batch([start]))
            for batch in batches for start in batch
        ]  # fmt: skip
    expected = torch.stack(each).mean().item()
    assert trainer.progress.validation_loss == pytest.approx(expected, rel=1e-5)


def test_clipping_bounds_the_gradient(
    tiny_run: RunConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    trainer = make_trainer(with_train(tiny_run, gradient_clip=0.01))

    def record() -> None:
        gradients = [p.grad.flatten() for p in trainer.model.parameters()]
        norms.append(torch.cat(gradients).norm().item())

    monkeypatch.setattr(trainer.optimizer, "step", record)
    trainer.run(stop_at=1)
    assert norms == [pytest.approx(0.01, rel=1e-3)]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_and_keeps_the_checkpoint(
    where: str, tiny_run: RunConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(with_train(tiny_run, checkpoint_interval=5))
    plain_loss = NextToken.loss

    def poisoned(self: NextToken, model: nn.Module, batch: Batch) -> Tensor:
        loss = plain_loss(self, model, batch)
        if trainer.progress.step == 7 and model.training:
            if where == "loss":
                return loss * math.nan
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr(NextToken, "loss", poisoned)
    with pytest.raises(DivergedError, match=f"diverged at step 8: the {where}.*last good"):
        trainer.run()
    model, _, _, progress = load_checkpoint(trainer.folder)
    assert progress.step == 5
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_signal_saves_and_returns(
    tiny_run: RunConfig, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(with_train(tiny_run, checkpoint_interval=1000))
    plain_loss = NextToken.loss

    def interrupting(self: NextToken, model: nn.Module, batch: Batch) -> Tensor:
        if trainer.progress.step == 3 and model.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain_loss(self, model, batch)

    monkeypatch.setattr(NextToken, "loss", interrupting)
    handler = signal.getsignal(signal.SIGTERM)
    assert trainer.run() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    assert load_checkpoint(trainer.folder)[3].step == 4  # the step that was under way


def test_second_signal_raises_and_threads_are_left_alone() -> None:
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    seen: list[int | None] = []

    def in_thread() -> None:
        with StopRequest() as request:
            seen.append(request.signal)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen == [None]


def test_resuming_drops_log_lines_after_the_checkpoint(
    tiny_run: RunConfig, make_trainer: MakeTrainer
) -> None:
    first = make_trainer(tiny_run)
    first.run(stop_at=10)
    log = first.folder / "log.jsonl"
    with log.open("a") as file:  # steps after the checkpoint, the last line cut by a crash
        file.write(json.dumps({"event": "train", "step": 11, "loss": 9.0}) + '\n{"event": "tr')
    make_trainer(tiny_run, resume_from=read_checkpoint(checkpoint_path(first.folder))).run()
    steps = [e["step"] for e in read_log(log) if e["event"] == "train"]
    assert steps == list(range(1, 21))
    assert all(e["loss"] != 9.0 for e in read_log(log))


def test_bfloat16_autocast_trains(tiny_run: RunConfig, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(with_train(tiny_run, dtype="bfloat16", steps=30))
    assert autocast_dtype("bfloat16", trainer.world.device) == torch.bfloat16
    trainer.run()
    assert trainer.progress.validation_loss < math.log(trainer.config.model.vocab_size) - 0.5
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
