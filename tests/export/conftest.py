"""Training runs as kvik_train leaves them, without the training, and their exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.export.families import Exported

from kvik_export.exporter import export_checkpoint
from kvik_train.checkpoint import Checkpoint, Progress, save_checkpoint
from kvik_train.config import DataConfig, RunConfig, TrainConfig
from kvik_train.data.prepare import tokenizer_path
from kvik_train.models.gpt import GPT, GPTConfig
from kvik_train.tokenizer import train_tokenizer

CONTEXT = 48


def make_run(folder: Path, *, seed: int) -> Path:
    """A tied two-layer GPT with seeded weights, its settings and a character tokenizer."""
    folder.mkdir()
    tokenizer = train_tokenizer("char", ["def main():\n    return 'naïve'\n"], 300)
    tokenizer.save(str(tokenizer_path(folder)))
    config = GPTConfig(
        vocab_size=tokenizer.get_vocab_size(), context_length=CONTEXT, n_layer=2, n_head=2,
        n_embd=16,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    run = RunConfig("char-tiny", "gpt", config, DataConfig(), TrainConfig())
    progress = replace(Progress(), step=7, validation_loss=1.5)
    save_checkpoint(folder, Checkpoint(run, progress, "", model.state_dict(), {}))
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one", seed=1)


@pytest.fixture(scope="session")
def other_run_folder(tmp_path_factory) -> Path:
    """The same architecture with other weights."""
    return make_run(tmp_path_factory.mktemp("runs") / "two", seed=2)


@pytest.fixture(scope="session")
def exported(run_folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_checkpoint(run_folder, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Files of tests.export.families by case, exported when first asked for."""
    return Exported(lambda: tmp_path_factory.mktemp("run"))
