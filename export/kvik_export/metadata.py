"""The kvik.* entries of metadata_props: what using a model needs beyond the graph.

key                   value
kvik.format           version of this table
kvik.task             what the file is for: generate, fill_mask, classify, tag, answer, embed,
                      translate or classify_image; kvik_export/forms.py has their inputs and outputs
kvik.family           model family of kvik_train: gpt, bert, transformer, rnn, seq2seq, vit, cnn
kvik.context_length   longest sequence, in tokens; of translate, longest source and longest target.
                      Absent where nothing bounds it (a recurrent model that generates), and for
                      images
kvik.labels           JSON list: the labels, in the order of the logits' last axis
kvik.tokenizer        the text of tokenizer.json. For every task but generate it puts the special
                      tokens around a text, or around a pair of them, by itself (post-processor);
                      of translate, around the source. Both languages have the same tokenizer
kvik.special_tokens   JSON object: text of each special token -> its id
kvik.eos_token_ids    JSON list: ids that end a text, or a translation
kvik.pad_token_id     id that fills up shorter rows of a batch, where the mask is 0
kvik.mask_token_id    of fill_mask: the id of a place to be filled
kvik.start_token_id   of translate: the id with which target_ids begin
kvik.pooling          of embed: "mean", how the vectors of a text's tokens become one
kvik.image            JSON object: size [height, width] in pixels, channels, and mean and std, by
                      which pixels from 0 to 1 are normalised: (pixel - mean) / std
kvik.generation       JSON object: defaults of sampling settings
kvik.provenance       JSON object: versions of what made the file, training step, losses

Nothing here depends on the time or the machine: equal inputs give equal files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvik_export.errors import ExportError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = "1"
# What a small model reads best with; every setting of a call goes before it.
GENERATION_DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40}
# How kvik_train's tokenizers spell what a task needs to know, by the key that says its id.
_ROLES = {
    "kvik.pad_token_id": ("[PAD]", "<pad>"),
    "kvik.mask_token_id": ("[MASK]",),
    "kvik.start_token_id": ("<s>",),
}
_ENDS = ("<|endoftext|>", "</s>")  # of a document, of a translation
_ROLES_OF = {
    "fill_mask": ("kvik.pad_token_id", "kvik.mask_token_id"),
    "translate": ("kvik.pad_token_id", "kvik.start_token_id"),
    "generate": (),
}


@dataclass(frozen=True)
class ImageFormat:
    size: int  # height and width, in pixels
    channels: int
    mean: float  # of every channel
    std: float


def model_metadata(
    *,
    task: str,
    family: str,
    provenance: Mapping[str, Any],
    context_length: int | None = None,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    labels: Sequence[str] = (),
    image: ImageFormat | None = None,
    generation: Mapping[str, Any] = GENERATION_DEFAULTS,
) -> dict[str, str]:
    """The table above for one model.

    Raises:
        ExportError: the tokenizer cannot be read, or has ids that the model has no row for.
    """
    entries = {
        "kvik.format": FORMAT,
        "kvik.task": task,
        "kvik.family": family,
        "kvik.provenance": compact(provenance),
    }
    if context_length is not None:
        entries["kvik.context_length"] = str(context_length)
    if labels:
        entries["kvik.labels"] = compact(list(labels))
    if task == "generate":
        entries["kvik.generation"] = compact(generation)
    if task == "embed":
        entries["kvik.pooling"] = "mean"
    if image is not None:
        entries["kvik.image"] = compact({
            "size": [image.size, image.size], "channels": image.channels,
            "mean": [image.mean] * image.channels, "std": [image.std] * image.channels,
        })  # fmt: skip
    if tokenizer is not None:
        entries |= _tokenizer_entries(tokenizer, vocab_size, task)
    return entries


def compact(value: Any) -> str:
    """JSON without spaces, keys sorted."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _tokenizer_entries(path: Path, vocab_size: int | None, task: str) -> dict[str, str]:
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises Exception itself
        raise ExportError(
            f"{path} is not a readable tokenizer.json: {first_line(error)}"
        ) from error
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if vocab_size is not None and size > vocab_size:
        raise ExportError(
            f"{path} has {size} tokens but the model has {vocab_size}; "
            "it belongs to another model: use the tokenizer that this one was trained with"
        )
    special = {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    entries = {"kvik.tokenizer": text, "kvik.special_tokens": compact(special)}
    if task in ("generate", "translate"):
        entries["kvik.eos_token_ids"] = compact(_ids(tokenizer, _ENDS))
    for key in _ROLES_OF.get(task, ("kvik.pad_token_id",)):
        # A GPT that classifies has no token for padding, and needs none: any id will do.
        found = [*_ids(tokenizer, _ROLES[key]), *_ids(tokenizer, _ENDS)]
        if found:
            entries[key] = str(found[0])
    return entries


def _ids(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[int]:
    found = (tokenizer.token_to_id(token) for token in tokens)
    return [index for index in found if index is not None]
