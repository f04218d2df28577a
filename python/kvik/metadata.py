"""What the kvik.* entries of a model's metadata_props mean to generation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kvik.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvik.tokenizer import Tokenizer

__all__ = ["stop_ids"]

_STOP_IDS = "kvik.eos_token_ids"  # a JSON list of integers
# How vocabularies spell the end of a text, for files that do not say.
_END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")


def stop_ids(
    metadata: Mapping[str, str], vocab_size: int, tokenizer: Tokenizer | None
) -> tuple[int, ...]:
    """The ids that end a text: what the file says, else the tokenizer's end-of-text token.

    Raises:
        InvalidModelError: the file's entry is not a list of ids of the vocabulary.
    """
    if _STOP_IDS in metadata:
        return _listed(metadata[_STOP_IDS], vocab_size)
    if tokenizer is None:
        return ()
    found = (tokenizer.id_of(token) for token in _END_TOKENS)
    return tuple(token_id for token_id in found if token_id is not None and token_id < vocab_size)


def _listed(text: str, vocab_size: int) -> tuple[int, ...]:
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(type(item) is int for item in ids):
        raise InvalidModelError(
            f"metadata {_STOP_IDS} must be a JSON list of token ids; found {text[:60]!r}"
        )
    for item in ids:
        if not 0 <= item < vocab_size:
            raise InvalidModelError(
                f"metadata {_STOP_IDS} names id {item}, but the vocabulary has {vocab_size} ids"
            )
    return tuple(ids)
