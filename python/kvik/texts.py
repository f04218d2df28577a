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

_LEAST_ROOM = 8  # tokens of a part of a context, below which reading it in parts makes no sense


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

    def text(self, text: str, *, truncate: bool | None = False, where: str = "the text") -> Framed:
        """`truncate`: None where the caller has no such option."""
        return self._fit(self._tokenizer.frame(text), truncate, where)

    def words(self, words: Sequence[str], *, where: str = "the text") -> Framed:
        """A text that is cut into words already; words of the result are their indices."""
        return self._fit(self._tokenizer.frame(list(words)), None, where)

    def pair(
        self, first: str, second: str, *, truncate: bool = False, where: str = "the pair"
    ) -> Framed:
        return self._fit(self._tokenizer.frame(first, second), truncate, where)

    def windows(
        self, first: str, second: str, overlap: float = 0.25
    ) -> tuple[Framed, list[tuple[int, Framed]]]:
        """The whole pair, and the parts of it that the model can read at once.

        A part is the first text with some of the second, which overlap, and comes with the place in
        the whole at which its own some begin.

        Raises:
            InvalidArgumentError: the second text is empty, or the first leaves too little room.
        """
        whole = _framed(self._tokenizer.frame(first, second))
        places = [i for i, text in enumerate(whole.texts) if text == 1]
        if not places:
            raise InvalidArgumentError("the context is empty: there is nothing to find in it")
        if self._limit is None or len(whole.ids) <= self._limit:
            return whole, [(places[0], whole)]
        frame = len(whole.ids) - len(places)
        room = self._limit - frame
        if room < _LEAST_ROOM:
            raise InvalidArgumentError(
                f"the question takes {frame} of the {self._limit} tokens that the model reads at "
                "once; ask a shorter one"
            )
        last = places[-1] + 1 - room
        begins = [*range(places[0], last, max(1, round(room * (1 - overlap)))), last]
        keep = [
            [*range(places[0]), *range(b, b + room), *range(places[-1] + 1, len(whole.ids))]
            for b in begins
        ]
        return whole, [(b, _picked(whole, own)) for b, own in zip(begins, keep, strict=True)]

    def _fit(self, encoding: Any, truncate: bool | None, where: str) -> Framed:
        framed = _framed(encoding)
        excess = 0 if self._limit is None else len(framed.ids) - self._limit
        if excess <= 0:
            return framed
        if not truncate:
            advice = "" if truncate is None else ", or pass truncate=True"
            raise InvalidArgumentError(
                f"{where} has {len(framed.ids)} tokens, more than the {self._limit} that the model "
                f"reads at once: shorten it{advice}"
            )
        # The longer text loses its end until both are equally long, then both do; the frame stays.
        first, second = (framed.texts.count(text) for text in (0, 1))
        room = first + second - excess
        if room < 1:
            raise InvalidArgumentError(
                f"the model reads {self._limit} tokens at once, fewer than a text's frame has"
            )
        kept = [0, 0]
        kept[0] = min(first, max(room - second, (room + 1) // 2))
        kept[1] = room - kept[0]
        keep, seen = [], [0, 0]
        for place, text in enumerate(framed.texts):
            if text is not None:
                seen[text] += 1
                if seen[text] > kept[text]:
                    continue
            keep.append(place)
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
