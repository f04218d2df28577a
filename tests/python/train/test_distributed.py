"""Two processes under torchrun train like one with the same batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvik_train import load_checkpoint
from kvik_train.config import TrainConfig
from kvik_train.distributed import World
from kvik_train.errors import TrainError
from kvik_train.objective import batch_share
from kvik_train.runlog import read_log

from .conftest import Finished


@pytest.mark.parametrize("accumulate", ["1", "2"])
def test_two_processes_equal_one(
    accumulate: str,
    corpus_file: Path,
    tmp_path: Path,
    train_command: Callable[..., Finished],
    command_environment: dict[str, str],
) -> None:
    options = [
        "--data", str(corpus_file), "--steps", "6", "--batch-size", "8", "--context", "16",
        "--eval-windows", "5", "--eval-interval", "3", "--log-interval", "1", "--device", "cpu",
        "--dtype", "float32", "--threads", "1", "--learning-rate", "1e-3", "--warmup", "2",
    ]  # fmt: skip
    alone = train_command(*options, "--out", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "kvik_train"]
    pair = subprocess.run(
        [sys.executable, "-m", *torchrun, *options, "--accumulate", accumulate,
         "--out", tmp_path / "two"],
        env=command_environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert pair.returncode == 0, pair.stderr
    assert "2 processes" in pair.stdout
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert one[3].step == two[3].step == 6
    assert one[3].tokens == two[3].tokens == 6 * 8 * 16
    # Adam divides by the gradient's size, so that rounding in a tiny gradient moves a weight by up
    # to the learning rate; a wrong average or a wrong batch moves most weights that far.
    total_rate = 5.0e-3
    for name, weight in one[0].state_dict().items():
        difference = (weight - two[0].state_dict()[name]).abs()
        assert difference.mean() < 1e-3 * total_rate, name
        assert difference.max() < total_rate, name
    losses = [
        [(e["event"], e["step"], e["loss"]) for e in read_log(tmp_path / name / "log.jsonl")]
        for name in ("one", "two")
    ]
    assert [entry[:2] for entry in losses[0]] == [entry[:2] for entry in losses[1]]
    assert len(losses[0]) == 6 + 3
    for left, right in zip(*losses, strict=True):
        assert left[2] == pytest.approx(right[2], rel=1e-5)


def test_the_batch_is_shared_equally_or_not_at_all() -> None:
    world = World(0, 2, torch.device("cpu"))
    assert batch_share(TrainConfig(batch_size=12, accumulate=3), world) == 2
    with pytest.raises(TrainError, match=r"--batch-size 10 .* 2 processes x 3 .* multiple of 6"):
        batch_share(TrainConfig(batch_size=10, accumulate=3), world)
