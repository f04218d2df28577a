"""Translation: a text in, the likeliest targets out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvik import _core
from kvik.arguments import check_count, check_number
from kvik.errors import InvalidArgumentError, InvalidModelError
from kvik.texts import Framing
from kvik.tokenizer import Tokenizer, require_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt


__all__ = ["Translation", "Translator", "read_start_id"]

_START = "kvik.start_token_id"  # the id with which a target begins
_LOGITS = 1 << 24  # of a step of the search
# How vocabularies spell it, for files that do not say.
_START_TOKENS = ("<s>", "[CLS]", "<pad>")
_IDS = "pass token ids"  # what does where a method takes them


@dataclass(frozen=True)
class Translation:
    """One of the best targets of a text."""

    text: str
    score: float  # log probability, divided by the length penalty
    log_probability: float
    ids: list[int]  # without the end of the text
    ended: bool  # else it was cut at the limit


def read_start_id(metadata: Mapping[str, str], file: Path) -> int | None:
    """The id with which targets begin, as the file says; None: it does not.

    Raises:
        InvalidModelError: the entry is no token id.
    """
    if _START not in metadata:
        return None
    text = metadata[_START]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidModelError(
            f"{file}: metadata {_START} must be a token id; found {text[:60]!r}"
        )
    return int(text)


class Translator:
    """Searches for targets."""

    def __init__(
        self,
        core: _core.Model,
        tokenizer: Tokenizer | None,
        start_id: int | None,
        end_ids: tuple[int, ...],
    ) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._start_id = start_id
        self._end_ids = end_ids

    def translate(
        self,
        texts: Sequence[str],
        *,
        beams: int,
        n_best: int,
        length_penalty: float,
        max_new_tokens: int | None,
        truncate: bool,
    ) -> list[list[Translation]]:
        check_count(beams, "beams", 1, 256)
        check_count(n_best, "n_best", 1, beams)
        penalty = check_number(length_penalty, "length_penalty")
        tokenizer = require_tokenizer(self._tokenizer)
        sources = self.source_ids(texts, truncate=truncate)
        if not sources:
            return []
        if max_new_tokens is not None:
            check_count(max_new_tokens, "max_new_tokens", 1)
        prompt = np.array(self.begin(), np.int64)
        # As many at once as have some 64 MiB of logits; that changes no result.
        size = max(1, _LOGITS // (beams * self._core.info.vocab_size))
        translations: list[list[Translation]] = []
        for begin in range(0, len(sources), size):
            part = sources[begin : begin + size]
            most = [max_new_tokens or self._most_tokens(len(source)) for source in part]
            found = _core.beam_search(
                self._core, [prompt] * len(part), part, beams, n_best, most, penalty,
                list(self._end_ids),
            )  # fmt: skip
            translations += [
                [
                    Translation(tokenizer.decode(ids), score, log_probability, ids, ended)
                    for ids, log_probability, score, ended in best
                ]
                for best in found
            ]
        return translations

    def _most_tokens(self, source_tokens: int) -> int:
        return self._core.info.context_length or 4 * source_tokens + 16

    def greedy(self, source: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The likeliest target of a source, from the id with which it begins, without its end."""
        limit = self._core.info.context_length
        begin = self.begin("the first ids of targets", "pass the target as token ids")
        prompt = np.array(begin, np.int64)
        most = [self._most_tokens(len(source))]
        [[(ids, *_)]] = _core.beam_search(
            self._core, [prompt], [source], 1, 1, most, 0.0, list(self._end_ids)
        )
        target = np.concatenate([prompt, np.array(ids, np.int64)])
        return target[:limit] if limit else target

    def target(self, text: str) -> npt.NDArray[np.int64]:
        """A target as the model reads it: the id with which it begins, and those of the text."""
        tokenizer = require_tokenizer(self._tokenizer, instead=_IDS)
        ids = tokenizer.frame(text, special=False).ids
        return np.array([*self.begin(), *ids], np.int64)

    def source_ids(
        self, texts: Sequence[str], *, truncate: bool, instead: str = ""
    ) -> list[npt.NDArray[np.int64]]:
        """The ids of sources. `instead`: what a caller without a tokenizer can do."""
        tokenizer = require_tokenizer(self._tokenizer, instead=instead)
        framing = Framing(tokenizer, self._core.info.source_length or None)
        return [
            framing.text(text, truncate=truncate, where=f"text {index}").ids
            for index, text in enumerate(texts)
        ]

    def begin(self, what: str = "texts", instead: str = _IDS) -> list[int]:
        """The ids with which every target begins.

        `what` needs a tokenizer where the file does not say them, and `instead` does without.
        """
        if self._start_id is not None:
            return [self._start_id]
        for spelling in _START_TOKENS:
            found = require_tokenizer(self._tokenizer, what, instead).id_of(spelling)
            if found is not None:
                return [found]
        raise InvalidArgumentError(
            f"the file does not say with which id targets begin: its metadata lack {_START}"
        )
