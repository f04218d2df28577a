"""Texts as an encoder takes them: ids in a frame of special tokens, and where each came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvik.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvik.tokenizer import Tokenizer

__all__ = ["Framed", "Framing", "one_or_many"]


@dataclass(frozen=True)
class Framed:
    """One text, or a pair, as ids."""

    ids: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64]  # 0 in the first text and its frame, 1 in the second
    # Of each token: characters [start, end) of the text it came from, which text that is (None for
    # special tokens), and which of its words.
    offsets: list[tuple[int, int]]
    texts: list[int | None]
    words: list[int | None]


class Framing:
    """Makes ids of texts, with the special tokens that the tokenizer adds to them.

    Args:
        tokenizer: As the model has it.
        limit: Ids that the model takes at most, the frame's among them; None: any number.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int | None) -> None:
        self._tokenizer = tokenizer
        self._limit = limit

    def text(self, text: str, *, truncate: bool = False, where: str = "the text") -> Framed:
        return self._fit(self._tokenizer.frame(text), truncate, where)

    def words(self, words: Sequence[str], *, where: str = "the text") -> Framed:
        """A text that is cut into words already; words of the result are their indices."""
        return self._fit(self._tokenizer.frame(list(words)), False, where)

    def pair(
        self, first: str, second: str, *, truncate: bool = False, where: str = "the pair"
    ) -> Framed:
        return self._fit(self._tokenizer.frame(first, second), truncate, where)

    def windows(self, first: str, second: str, overlap: float = 0.25) -> list[Framed]:
        """The pair, with the second text in as many overlapping parts as the limit asks for.

        Raises:
            InvalidArgumentError: the first text alone leaves too little room.
        """
        whole = _framed(self._tokenizer.frame(first, second))
        if self._limit is None or len(whole.ids) <= self._limit:
            return [whole]
        places = [i for i, text in enumerate(whole.texts) if text == 1]
        room = self._limit - (len(whole.ids) - len(places))
        if room < 8:
            raise InvalidArgumentError(
                f"the question takes {len(whole.ids) - len(places)} of the {self._limit} tokens "
                "that the model reads at once; ask a shorter one"
            )
        step = max(1, round(room * (1 - overlap)))
        begins = [*range(places[0], places[-1] + 1 - room, step), places[-1] + 1 - room]
        return [_without(whole, places[0], b, b + room, places[-1] + 1) for b in begins]

    def _fit(self, encoding: Any, truncate: bool, where: str) -> Framed:
        framed = _framed(encoding)
        if self._limit is None or len(framed.ids) <= self._limit:
            return framed
        if not truncate:
            raise InvalidArgumentError(
                f"{where} has {len(framed.ids)} tokens, more than the {self._limit} that the model "
                "reads at once: shorten it, or pass truncate=True"
            )
        # The longest text loses its end, then the next; the frame stays.
        keep = list(range(len(framed.ids)))
        while len(keep) > self._limit:
            counts = {t: sum(framed.texts[i] == t for i in keep) for t in (0, 1)}
            longest = max(counts, key=lambda t: counts[t])
            excess = len(keep) - self._limit
            other = counts[1 - longest]
            cut = min(excess, max(1, counts[longest] - other))
            if counts[longest] == 0:
                raise InvalidArgumentError(
                    f"the model reads {self._limit} tokens at once, fewer than a text's frame has"
                )
            last = [i for i in keep if framed.texts[i] == longest][-cut:]
            keep = [i for i in keep if i not in set(last)]
        return _picked(framed, keep)


def one_or_many(texts: object, name: str) -> tuple[list[Any], bool]:
    """A text, or several; and whether it was a list.

    Raises:
        InvalidArgumentError: it is neither.
    """
    if isinstance(texts, str):
        return [texts], False
    if not isinstance(texts, (list, tuple)):
        raise InvalidArgumentError(
            f"{name} must be a text or a list of texts; found {type(texts).__name__}"
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidArgumentError(
                f"{name}[{index}] must be a text; found {type(text).__name__}"
            )
    return list(texts), True


def _framed(encoding: Any) -> Framed:
    return Framed(
        np.array(encoding.ids, np.int64),
        np.array(encoding.type_ids, np.int64),
        list(encoding.offsets),
        list(encoding.sequence_ids),
        list(encoding.word_ids),
    )


def _picked(whole: Framed, keep: list[int]) -> Framed:
    return Framed(
        whole.ids[keep],
        whole.types[keep],
        [whole.offsets[i] for i in keep],
        [whole.texts[i] for i in keep],
        [whole.words[i] for i in keep],
    )


def _without(whole: Framed, first: int, begin: int, end: int, last: int) -> Framed:
    """Tokens [first, last) but for those of [begin, end) are left out."""
    keep = [i for i in range(len(whole.ids)) if not first <= i < last or begin <= i < end]
    return _picked(whole, keep)
