"""A small corpus, small settings, and the command as a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import kvik_train
from kvik_train.checkpoint import Checkpoint
from kvik_train.cli import main
from kvik_train.config import DataConfig, RunConfig, TrainConfig
from kvik_train.data.prepare import open_split, prepare
from kvik_train.distributed import World
from kvik_train.models import build_model
from kvik_train.models.gpt import GPTConfig
from kvik_train.progress import SilentReporter
from kvik_train.tasks.lm import NextToken
from kvik_train.trainer import Trainer

PACKAGE_ROOT = Path(kvik_train.__file__).parents[1]

# Long enough for windows of 16 tokens in both splits, with characters of 1 to 4 bytes.
SENTENCES = [
    "def add(left, right):\n    return left + right\n",
    "for index in range(10):\n    print(index)\n",
    "naïve café, 漢字 and 🙂\n",
    "The quick brown fox jumps over the lazy dog.\n",
]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny matrices are slower on several threads, and subprocesses run beside each other."""
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    lines = [SENTENCES[(i * i + i // 3) % len(SENTENCES)] for i in range(200)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def tiny_run(corpus_file: Path) -> RunConfig:
    """Two layers with dropout; every random choice of a run matters."""
    return RunConfig(
        preset="char-tiny",
        family="gpt",
        model=GPTConfig(context_length=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1),
        data=DataConfig(source=str(corpus_file)),
        train=TrainConfig(
            steps=20, batch_size=4, learning_rate=3e-3, warmup_steps=5, eval_interval=10,
            eval_windows=5, checkpoint_interval=10, log_interval=1, device="cpu", dtype="float32",
            threads=1,
        ),
    )  # fmt: skip


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(
        config: RunConfig, folder: str = "run", resume_from: Checkpoint | None = None
    ) -> Trainer:
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        prepared = prepare(config.data, out, lambda text: None)
        config = replace(config, model=replace(config.model, vocab_size=prepared.vocab_size))
        window = config.model.context_length + 1
        splits = open_split(prepared, out, config.train.validation_fraction, window)
        world = World(0, 1, torch.device("cpu"))
        torch.manual_seed(config.train.seed)
        model = build_model(config.model)
        objective = NextToken(*splits, config.model.context_length, config.train, world)
        return Trainer(
            model, objective, config, out, world, SilentReporter(), prepared.tokens_sha256,
            resume_from,
        )  # fmt: skip

    return make


@pytest.fixture
def command_environment() -> dict[str, str]:
    paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    joined = os.pathsep.join(path for path in paths if path)
    return {**os.environ, "PYTHONPATH": joined, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Finished:
    """What a command left: exit status and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def train_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """`python -m kvik_train ARGUMENTS` in tmp_path, without the seconds that a process takes."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | float | Path) -> Finished:
        monkeypatch.setattr(sys, "argv", ["kvik_train", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
        except SystemExit as exit_:
            status = exit_.code or 0
        printed = capfd.readouterr()
        assert isinstance(status, int)
        return Finished(status, printed.out, printed.err)

    return run
