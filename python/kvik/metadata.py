"""What the kvik.* entries of a model's metadata_props mean to generation.

The entries are checked when a model is loaded: a fault in the file is reported as one, with the
file and the key, and not when a setting is first used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvik import _core
from kvik.errors import InvalidArgumentError, InvalidModelError
from kvik.generation import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvik.tokenizer import Tokenizer

__all__ = ["GenerationMetadata", "end_ids", "read_metadata"]

# kvik.format and kvik.context_length are the engine's to check.
_SPECIAL = "kvik.special_tokens"  # a JSON object: text of each special token -> its id
_END_IDS = "kvik.eos_token_ids"  # a JSON list of integers
_GENERATION = "kvik.generation"  # a JSON object: sampling settings that suit the model
_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# How vocabularies spell the end of a text, for files that do not say.
_END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")


@dataclass(frozen=True)
class GenerationMetadata:
    """What a file says about generating with it."""

    end_ids: tuple[int, ...] | None = None  # that end a text; None: the file does not say
    # Sampling settings that the file recommends, by the names of Model.generate's arguments.
    defaults: Mapping[str, float] | None = None


def read_metadata(metadata: Mapping[str, str], vocab_size: int, file: Path) -> GenerationMetadata:
    """The entries that concern generation, all of them checked.

    Raises:
        InvalidModelError: an entry is malformed, or says what cannot be.
    """
    return _Reader(metadata, vocab_size, file).read()


def end_ids(
    metadata: GenerationMetadata, tokenizer: Tokenizer | None, limit: int
) -> tuple[int, ...]:
    """The ids that end a text: what the file says, else the tokenizer's end-of-text token.

    Of the tokenizer's, those below `limit`, where that is known (not 0).
    """
    if metadata.end_ids is not None:
        return metadata.end_ids
    if tokenizer is None:
        return ()
    ids = (tokenizer.id_of(token) for token in _END_TOKENS)
    return tuple(found for found in ids if found is not None and (found < limit or not limit))


@dataclass(frozen=True)
class _Reader:
    metadata: Mapping[str, str]
    vocab_size: int  # 0: not known before the model runs
    file: Path

    def read(self) -> GenerationMetadata:
        if _SPECIAL in self.metadata:
            self._check_special()
        return GenerationMetadata(
            end_ids=self._end_ids() if _END_IDS in self.metadata else None,
            defaults=self._defaults() if _GENERATION in self.metadata else None,
        )

    def _check_special(self) -> None:
        tokens = self._json(_SPECIAL)
        if not isinstance(tokens, dict):
            raise self._wrong(_SPECIAL, "must be a JSON object of texts and token ids")
        for item in tokens.values():
            self._check_id(_SPECIAL, item, "must be a JSON object of texts and token ids")

    def _end_ids(self) -> tuple[int, ...]:
        ids = self._json(_END_IDS)
        if not isinstance(ids, list):
            raise self._wrong(_END_IDS, "must be a JSON list of token ids")
        for item in ids:
            self._check_id(_END_IDS, item, "must be a JSON list of token ids")
        return tuple(ids)

    def _defaults(self) -> dict[str, float]:
        """Settings that this version does not know are left out."""
        settings = self._json(_GENERATION)
        if not isinstance(settings, dict):
            raise self._wrong(_GENERATION, "must be a JSON object")
        found: dict[str, Any] = {name: settings[name] for name in _DEFAULTS if name in settings}
        if None in found.values():  # an argument may be None; what a file recommends may not
            raise self._wrong(_GENERATION, "must not hold null")
        try:  # the checks of a call's arguments: types, then the engine's ranges
            _core.Sampler(Settings(seed=0, **found).sampler(), max(self.vocab_size, 1))
        except InvalidArgumentError as error:
            raise InvalidModelError(f"{self.file}: metadata {_GENERATION}: {error}") from error
        return found

    def _check_id(self, key: str, item: object, expected: str) -> None:
        if type(item) is not int:
            raise self._wrong(key, expected)
        if item < 0 or (self.vocab_size and item >= self.vocab_size):
            raise InvalidModelError(
                f"{self.file}: metadata {key} names id {item}, but the vocabulary has "
                f"{self.vocab_size} ids"
            )

    def _json(self, key: str) -> object:
        try:
            value: object = json.loads(self.metadata[key])
        except (ValueError, RecursionError):
            return None
        return value

    def _wrong(self, key: str, expected: str) -> InvalidModelError:
        return InvalidModelError(
            f"{self.file}: metadata {key} {expected}; found {self.metadata[key][:60]!r}"
        )
