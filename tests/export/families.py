"""One tiny model of every family and task, with seeded weights, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import kvik
from kvik import _core
from kvik_export.exporter import export_checkpoint
from kvik_train.checkpoint import Checkpoint, Progress, save_checkpoint
from kvik_train.config import DataConfig, RunConfig, TrainConfig
from kvik_train.data.framing import DECODER, ENCODER, SOURCE, with_frame
from kvik_train.data.prepare import tokenizer_path
from kvik_train.models import build_model
from kvik_train.models.bert import BERTConfig
from kvik_train.models.cnn import CNNConfig
from kvik_train.models.gpt import GPTConfig
from kvik_train.models.rnn import RNNConfig
from kvik_train.models.seq2seq import Seq2SeqConfig
from kvik_train.models.transformer import TransformerConfig
from kvik_train.models.vit import ViTConfig
from kvik_train.tokenizer import BERT_TOKENS, END_OF_TEXT, TRANSLATION_TOKENS, train_tokenizer

CONTEXT = 20
MODELS = {
    "gpt": GPTConfig(300, CONTEXT, n_layer=1, n_head=2, n_embd=16),
    # Wide enough that low precisions take hold: of matrices with 4096 elements and more.
    "bert": BERTConfig(60, CONTEXT, n_layer=1, n_head=2, n_embd=64, n_feed_forward=128),
    "transformer": TransformerConfig(
        300, CONTEXT, n_layer=1, n_head=2, n_embd=64, n_feed_forward=128
    ),
    "rnn": RNNConfig("rnn", 300, 9, n_layer=2, n_embd=8, n_hidden=12),
    "lstm": RNNConfig("lstm", 300, 9, n_layer=2, n_embd=8, n_hidden=12),
    "gru": RNNConfig("gru", 300, 9, n_layer=1, n_embd=8, n_hidden=12),
    "seq2seq": Seq2SeqConfig(300, CONTEXT, n_layer=2, n_embd=8, n_hidden=12),
    "vit": ViTConfig(8, 3, patch_size=4, n_layer=1, n_head=2, n_embd=16, n_feed_forward=32),
    "cnn": CNNConfig(8, kernel_size=3, padding=1, n_filter_1=3, n_filter_2=4, n_hidden_1=6,
                     n_hidden_2=5),
}  # fmt: skip
# family, task, as it is exported, kvik.task
CASES = [
    ("lstm", "lm", None, "generate"),
    ("gru", "lm", None, "generate"),
    ("rnn", "lm", None, "generate"),
    ("gpt", "classify", None, "classify"),
    ("bert", "mlm", None, "fill_mask"),
    ("bert", "classify", None, "classify"),
    ("bert", "tag", None, "tag"),
    ("bert", "answer", None, "answer"),
    ("bert", "mlm", "embed", "embed"),
    ("transformer", "translate", None, "translate"),
    ("seq2seq", "translate", None, "translate"),
    ("vit", "classify-image", None, "classify_image"),
    ("cnn", "classify-image", None, "classify_image"),
]
TRANSFORMER = ("transformer", "translate", None)
LABELS = ("ham", "spam", "other")


def make_run(folder: Path, family: str, task: str) -> Path:
    """A run as kvik_train leaves it, with seeded weights."""
    folder.mkdir(parents=True)
    if task != "classify-image":
        special = {"bert": BERT_TOKENS, "transformer": TRANSLATION_TOKENS,
                   "seq2seq": TRANSLATION_TOKENS}.get(family, (END_OF_TEXT,))  # fmt: skip
        kind = "wordpiece" if family == "bert" else "char"
        tokenizer = train_tokenizer(kind, ["one two three four five"] * 3, 300, special)
        frame = {"bert": ENCODER, "gpt": DECODER}.get(family, SOURCE)
        if task != "lm":
            with_frame(tokenizer, frame)
        tokenizer.save(str(tokenizer_path(folder)))
    labels = LABELS if task in ("classify", "tag", "classify-image") else ()
    torch.manual_seed(3)
    model = build_model(MODELS[family], task, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    name = "rnn" if family in ("lstm", "gru") else family
    run = RunConfig("tiny", name, MODELS[family], DataConfig(), TrainConfig(), task, labels=labels)
    save_checkpoint(
        folder, Checkpoint(run, replace(Progress(), step=3), "", model.state_dict(), {})
    )
    return folder


class Exported(dict[tuple[str, str, str | None], Path]):
    """Files by case, exported into a new folder when first asked for."""

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self.new_folder = new_folder

    def __missing__(self, case: tuple[str, str, str | None]) -> Path:
        family, task, use = case
        folder = self.new_folder()
        path = folder / "model.onnx"
        export_checkpoint(make_run(folder / "run", family, task), path, task=use)
        self[case] = path
        return path


def logits_in_pieces(
    core: _core.Model, sequences: list[_core.Sequence], texts: list[np.ndarray], step: int
) -> list[np.ndarray]:
    """Logits [tokens, vocab] of each text, all fed together in pieces of `step` tokens."""
    found: list[list[np.ndarray]] = [[] for _ in texts]
    for begin in range(0, max(map(len, texts)), step):
        part = [(i, text[begin : begin + step]) for i, text in enumerate(texts)]
        part = [(i, ids) for i, ids in part if len(ids)]
        rows = core.forward([(sequences[i], ids, _core.Logits.ALL) for i, ids in part])
        for (i, ids), own in zip(
            part, np.split(rows, np.cumsum([len(ids) for _, ids in part])[:-1]), strict=True
        ):
            assert len(own) == len(ids)
            found[i].append(own)
    return [np.concatenate(parts) for parts in found]


def target_logits(model: kvik.Model, pairs: list[tuple[np.ndarray, np.ndarray]], *, step: int):
    """Logits [target, vocab] of each pair."""
    sequences = model._core.new_sequences([source for source, _ in pairs])
    return logits_in_pieces(model._core, sequences, [target for _, target in pairs], step)


def unequal_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(11)
    sizes = ((5, 7), (1, 1), (CONTEXT, 3), (2, CONTEXT), (13, 13))
    return [(random.integers(0, 300, s), random.integers(0, 300, t)) for s, t in sizes]
