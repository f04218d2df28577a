"""What an exported file takes and gives, by the task of its model.

task            inputs                                            outputs
generate        ids                                               logits [batch, sequence, vocab]
fill_mask       input_ids, attention_mask, token_type_ids         logits [batch, sequence, vocab]
classify        the same; a GPT has no token_type_ids             logits [batch, labels]
tag             the same as fill_mask                             logits [batch, sequence, labels]
answer          the same                                          start_logits, end_logits
                                                                  [batch, sequence] each
embed           the same                                          last_hidden_state
                                                                  [batch, sequence, channels]
translate       source_ids, source_mask, target_ids               logits [batch, target, vocab],
                                                                  and of recurrent models
                                                                  alignments [batch, target, source]
classify_image  image [batch, channels, height, width]            logits [batch, labels]

Ids, masks and segments are int64 [batch, sequence]; a mask is 1 at real tokens and 0 at padding,
which stands on the right. Images and outputs are float32. Everything but the size of an image is
dynamic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kvik_export.errors import ExportError

if TYPE_CHECKING:
    from kvik_train.config import RunConfig

EMBED = "embed"


@dataclass(frozen=True)
class Input:
    name: str
    axes: tuple[str | int, ...]  # a name where the size is dynamic


@dataclass(frozen=True)
class Form:
    task: str  # kvik.task
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    rank: int  # of the first output

    def axes(self) -> tuple[str, ...]:
        """The names of the dynamic axes, each once."""
        names = [axis for item in self.inputs for axis in item.axes if isinstance(axis, str)]
        return tuple(dict.fromkeys(names))


_TEXT = ("batch", "sequence")
GENERATE = Form("generate", (Input("ids", _TEXT),), ("logits",), 3)
_ENCODER = tuple(Input(name, _TEXT) for name in ("input_ids", "attention_mask", "token_type_ids"))


def form_of(config: RunConfig, task: str | None = None) -> Form:
    """The form of a model of kvik_train.

    Args:
        task: "embed" for the vectors of a BERT without its head; None for what it was trained for.
    """
    if task not in (None, EMBED):
        raise ExportError(
            f"task is {task!r}; a model is exported for what it learnt, or as {EMBED}"
        )
    if task == EMBED:
        if config.family != "bert":
            raise ExportError(f"a {config.family} model gives no embeddings; a bert model does")
        return Form(EMBED, _ENCODER, ("last_hidden_state",), 3)
    if config.task == "lm":
        return GENERATE
    if config.task == "translate":
        source, target = ("batch", "source"), ("batch", "target")
        inputs = (Input("source_ids", source), Input("source_mask", source),
                  Input("target_ids", target))  # fmt: skip
        aligned = ("alignments",) if config.family == "seq2seq" else ()
        return Form("translate", inputs, ("logits", *aligned), 3)
    if config.task == "classify-image":
        size = config.model.image_size
        image = Input("image", ("batch", config.model.channels, size, size))
        return Form("classify_image", (image,), ("logits",), 2)
    forms = {
        "mlm": Form("fill_mask", _ENCODER, ("logits",), 3),
        "classify": Form(
            "classify", _ENCODER if config.family == "bert" else _ENCODER[:2], ("logits",), 2
        ),
        "tag": Form("tag", _ENCODER, ("logits",), 3),
        "answer": Form("answer", _ENCODER, ("start_logits", "end_logits"), 2),
    }
    return forms[config.task]


def plain_forward(module: nn.Module, form: Form) -> nn.Module:
    """The module whose forward has the form: itself, or of an embedder the part before its head."""
    if form.task != EMBED:
        return module
    backbone = module.backbone
    assert isinstance(backbone, nn.Module)
    return backbone


Feeds = dict[str, npt.NDArray[Any]]  # int64 or float32


def make_feeds(
    inputs: tuple[Input, ...], sizes: Mapping[str, int], vocab_size: int, seed: int
) -> Feeds:
    """Random inputs of these sizes; the last row of each mask is half padding, the others whole."""
    generator = np.random.default_rng(seed)
    feeds: Feeds = {}
    for item in inputs:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in item.axes)
        if item.name == "image":
            feeds[item.name] = generator.standard_normal(shape, dtype=np.float32)
        elif item.name.endswith("mask"):
            mask = np.ones(shape, dtype=np.int64)
            mask[-1, max(1, shape[1] // 2) :] = 0
            feeds[item.name] = mask
        elif item.name == "token_type_ids":
            second = (np.arange(shape[1]) >= shape[1] // 3).astype(np.int64)
            feeds[item.name] = np.broadcast_to(second, shape).copy()
        else:
            feeds[item.name] = generator.integers(0, vocab_size, shape)
    return feeds


def as_tensors(feeds: Feeds, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(value).to(device) for value in feeds.values())
