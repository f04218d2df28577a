"""Tiny runs of every family and task, on data of a few lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kvik_train.checkpoint import Checkpoint, checkpoint_path, read_checkpoint, start_from
from kvik_train.config import DataConfig, RunConfig, TrainConfig
from kvik_train.distributed import World
from kvik_train.models import build_model
from kvik_train.models.bert import BERTConfig
from kvik_train.models.cnn import CNNConfig
from kvik_train.models.gpt import GPTConfig
from kvik_train.models.rnn import RNNConfig
from kvik_train.models.seq2seq import Seq2SeqConfig
from kvik_train.models.transformer import TransformerConfig
from kvik_train.models.vit import ViTConfig
from kvik_train.progress import SilentReporter
from kvik_train.run import fitted
from kvik_train.tasks import find_task
from kvik_train.trainer import Trainer

MODELS: dict[str, Any] = {
    "gpt": GPTConfig(384, context_length=32, n_layer=2, n_head=2, n_embd=16, dropout=0.1),
    "bert": BERTConfig(200, context_length=40, n_layer=2, n_head=2, n_embd=16, n_feed_forward=32),
    "transformer": TransformerConfig(
        300, context_length=48, n_layer=2, n_head=2, n_embd=16, n_feed_forward=32
    ),
    "rnn": RNNConfig("rnn", 384, 16, n_layer=2, n_embd=8, n_hidden=16, dropout=0.1),
    "lstm": RNNConfig("lstm", 384, 16, n_layer=2, n_embd=8, n_hidden=16, dropout=0.1),
    "gru": RNNConfig("gru", 384, 16, n_layer=2, n_embd=8, n_hidden=16, dropout=0.1),
    "seq2seq": Seq2SeqConfig(300, context_length=48, n_layer=2, n_embd=8, n_hidden=16),
    "vit": ViTConfig(8, 1, patch_size=4, n_layer=2, n_head=2, n_embd=16, n_feed_forward=32,
                     dropout=0.1),
    "cnn": CNNConfig(8, kernel_size=3, padding=1, n_filter_1=4, n_filter_2=4, n_hidden_1=8,
                     n_hidden_2=8, dropout=0.1),
}  # fmt: skip
# Every task that a model learns from nothing, and every second stage.
FIRST = [
    ("gpt", "lm"), ("lstm", "lm"), ("gru", "lm"), ("rnn", "lm"), ("bert", "mlm"),
    ("transformer", "translate"), ("seq2seq", "translate"), ("vit", "classify-image"),
    ("cnn", "classify-image"),
]  # fmt: skip
SECOND = [
    ("gpt", "lm"), ("gpt", "classify"), ("bert", "classify"), ("bert", "tag"), ("bert", "answer"),
]  # fmt: skip
WORDS = ("one", "two", "three", "red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps")


def write_data(task: str, folder: Path) -> Path:
    """A small data set of the task's kind."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    texts = [" ".join(random.choice(list(WORDS), 6)) for _ in range(60)]
    if task in ("lm", "mlm"):
        path = folder / "text.txt"
        path.write_text("".join(f"{text}.\n" for text in texts * 4))
        return path
    if task == "classify-image":
        for number in range(30):
            label = folder / ("dark" if number % 2 else "light")
            label.mkdir(exist_ok=True)
            pixels = random.integers(0, 128, (8, 8)) + (0 if number % 2 else 127)
            Image.fromarray(pixels.astype(np.uint8)).save(label / f"{number}.png")
        return folder
    rows: list[dict[str, Any]] = []
    for text in texts:
        words = text.split()
        if task == "classify":
            rows.append({"text": text, "label": "cat" if "cat" in words else "other"})
        elif task == "tag":
            tags = ["animal" if w in ("cat", "dog", "bird") else "word" for w in words]
            rows.append({"words": words, "tags": tags})
        elif task == "answer":
            rows.append({"context": text, "question": "the last", "answer": words[-1]})
        else:
            rows.append({"source": text, "target": " ".join(reversed(words))})
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(family: str, task: str, folder: Path, base: Path | None = None) -> RunConfig:
    model = MODELS[family]
    kind = "none" if task == "classify-image" else "wordpiece" if family == "bert" else "char"
    name = "rnn" if family in ("lstm", "gru") else family
    if base is not None:
        saved = read_checkpoint(checkpoint_path(base)).config
        model, kind = saved.model, saved.data.tokenizer
    return RunConfig(
        preset=family,
        family=name,
        model=model,
        data=DataConfig(
            str(write_data(task, folder / f"data-{task}")), tokenizer=kind,
            vocab_size=200 if kind == "wordpiece" else 300,
        ),
        train=TrainConfig(
            steps=12, batch_size=4, learning_rate=3e-3, warmup_steps=3, eval_interval=6,
            eval_windows=5, checkpoint_interval=6, log_interval=1, device="cpu", dtype="float32",
            threads=1, image_shift=1, auxiliary_lm=0.5, label_smoothing=0.1,
        ),
        task=task,
        base=None if base is None else str(base),
    )  # fmt: skip


def make_trainer(config: RunConfig, out: Path, resume_from: Checkpoint | None = None) -> Trainer:
    out.mkdir(exist_ok=True)
    task, world = find_task(config.task), World(0, 1, torch.device("cpu"))
    prepared = task.load(out) or task.prepare(config, out, lambda text: None)
    config = fitted(config, prepared)
    objective = task.objective(config, out, prepared, world)
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, config.task, config.labels)
    if config.base is not None and resume_from is None:
        path = checkpoint_path(Path(config.base))
        start_from(model, read_checkpoint(path), path)
    return Trainer(
        model, objective, config, out, world, SilentReporter(), prepared.sha256, resume_from
    )


def with_train(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))
