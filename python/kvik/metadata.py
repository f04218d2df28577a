"""What the kvik.* entries of a model's metadata_props mean to generation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kvik.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvik.tokenizer import Tokenizer

__all__ = ["generation_defaults", "stop_ids"]

_STOP_IDS = "kvik.eos_token_ids"  # a JSON list of integers
_GENERATION = "kvik.generation"  # a JSON object: sampling settings that suit the model
_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
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


def generation_defaults(metadata: Mapping[str, str]) -> dict[str, float]:
    """Sampling settings that the file recommends, by the names of Model.generate's arguments.

    Settings that this version does not know are left out.

    Raises:
        InvalidModelError: the file's entry is no JSON object, or a setting is not a number.
    """
    if _GENERATION not in metadata:
        return {}
    text = metadata[_GENERATION]
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise InvalidModelError(
            f"metadata {_GENERATION} must be a JSON object; found {text[:60]!r}"
        )
    found = {name: settings[name] for name in _DEFAULTS if name in settings}
    for name, value in found.items():
        if type(value) not in (int, float):
            raise InvalidModelError(
                f"metadata {_GENERATION}: {name} must be a number; found {str(value)[:60]!r}"
            )
    return found
