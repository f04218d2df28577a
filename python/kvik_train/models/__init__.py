"""Model families by name. A checkpoint names its family; this table turns the name into code.

A family is one file beside gpt.py (a frozen config, a module for each task, presets), one line
here, and a recipe for each preset in kvik_train/presets.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kvik_train.config import from_plain
from kvik_train.errors import TrainError
from kvik_train.models import bert, cnn, gpt, rnn, seq2seq, transformer, vit


@dataclass(frozen=True)
class Family:
    config: type[Any]  # a frozen dataclass
    # By the task that a module learns; the first is what training from nothing learns. A module is
    # built from its config and, where the task has labels, their number.
    models: Mapping[str, type[nn.Module]]
    presets: Mapping[str, Any]


FAMILIES: dict[str, Family] = {
    "gpt": Family(
        gpt.GPTConfig, {"lm": gpt.GPT, "classify": gpt.GPTClassifier}, gpt.PRESETS
    ),
    "bert": Family(
        bert.BERTConfig,
        {
            "mlm": bert.BERTPretraining,
            "classify": bert.BERTClassifier,
            "tag": bert.BERTTagger,
            "answer": bert.BERTAnswerer,
        },
        bert.PRESETS,
    ),
    "transformer": Family(
        transformer.TransformerConfig,
        {"translate": transformer.Transformer},
        transformer.PRESETS,
    ),
    "rnn": Family(rnn.RNNConfig, {"lm": rnn.RNN}, rnn.PRESETS),
    "seq2seq": Family(seq2seq.Seq2SeqConfig, {"translate": seq2seq.Seq2Seq}, seq2seq.PRESETS),
    "vit": Family(vit.ViTConfig, {"classify-image": vit.ViT}, vit.PRESETS),
    "cnn": Family(cnn.CNNConfig, {"classify-image": cnn.CNN}, cnn.PRESETS),
}  # fmt: skip

# Tasks whose head has a row for each label.
LABELLED = ("classify", "tag", "classify-image")


def family_of(config: object) -> str:
    """The name of the family that `config` belongs to."""
    for name, family in FAMILIES.items():
        if type(config) is family.config:
            return name
    raise TypeError(f"{type(config).__name__} is the config of no known model family")


def build_model(config: object, task: str | None = None, labels: Sequence[str] = ()) -> nn.Module:
    """A freshly initialised model; its weights come from torch's global generator.

    Args:
        task: what it learns; None: what its family learns from nothing.
        labels: those of the task's data, where it has any.
    """
    models = FAMILIES[family_of(config)].models
    task = task or next(iter(models))
    check_task(family_of(config), task)
    arguments = (config, len(labels)) if task in LABELLED else (config,)
    model: nn.Module = models[task](*arguments)
    return model


def check_task(family: str, task: str) -> None:
    models = FAMILIES[family].models
    if task not in models:
        others = [name for name, other in FAMILIES.items() if task in other.models]
        who = f"; {task} is for {', '.join(others)}" if others else ""
        raise TrainError(
            f"a {family} model cannot learn {task!r}; it learns {', '.join(models)}{who}"
        )


def config_from_dict(family: str, values: object) -> Any:
    """The inverse of dataclasses.asdict, with the family's name and the settings checked."""
    if family not in FAMILIES:
        raise TrainError(f"unknown model family {family!r}; this version has {', '.join(FAMILIES)}")
    return from_plain(FAMILIES[family].config, values, "model")
