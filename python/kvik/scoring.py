"""Logits and log-probabilities of given tokens: those of a text, or of a source's target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvik import _core
from kvik.arguments import Ids, check_count, check_ids
from kvik.errors import InvalidArgumentError
from kvik.generation import read_prompts
from kvik.info import Score
from kvik.probabilities import log_softmax

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvik.tokenizer import Tokenizer
    from kvik.translation import Translator

__all__ = ["Scorer"]

_ROWS = 64  # of logits held at once while scoring: 64 · vocabulary · 4 bytes


class Scorer:
    """Runs tokens that are given; its arguments are those of Model.logits() and Model.score().

    Args:
        id_limit: Ids below this are accepted.
        stop_ids: The first of them ends a target.
    """

    def __init__(
        self,
        core: _core.Model,
        tokenizer: Tokenizer | None,
        translator: Translator,
        id_limit: int,
        stop_ids: Sequence[int],
    ) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._translator = translator
        self._id_limit = id_limit
        self._stop_ids = stop_ids

    def logits(
        self, ids: str | Ids, source: str | Ids | None, cache: bool, chunk: int | None
    ) -> npt.NDArray[np.float32]:
        """Float32 [ids, vocab_size]."""
        begin = self._translator.begin() if source is not None and isinstance(ids, str) else []
        tokens = np.asarray(self.ids_of_one(ids, begin), dtype=np.int64)
        size = len(tokens) if chunk is None else check_count(chunk, "chunk", 1)
        if cache:
            parts = list(self._in_chunks(tokens, size, source))
            return parts[0] if len(parts) == 1 else np.concatenate(parts)  # no copy of one
        last = _core.Logits.LAST
        rows = [
            self._core.forward([(self._new_sequence(source), tokens[: i + 1], last)])
            for i in range(len(tokens))
        ]
        return np.concatenate(rows)

    def score(self, text: str | Ids, source: str | Ids | None) -> Score:
        begin, end = [], []
        if source is not None and isinstance(text, str):
            begin, end = self._translator.begin(), list(self._stop_ids[:1])
        tokens = self.ids_of_one(text, begin, end)
        if len(tokens) < 2:
            raise InvalidArgumentError(
                "score needs at least two tokens: the first has nothing before it to predict it"
            )
        logprobs = np.full(len(tokens), np.nan)
        row = 0
        inputs = np.asarray(tokens[:-1], dtype=np.int64)
        for logits in self._in_chunks(inputs, _ROWS, source):
            count = len(logits)
            wanted = tokens[row + 1 : row + 1 + count]
            logprobs[row + 1 : row + 1 + count] = log_softmax(logits)[np.arange(count), wanted]
            row += count
        return Score(tokens, [self._spell(token) for token in tokens], logprobs)

    def ids_of_one(
        self, prompt: object, begin: Sequence[int] = (), end: Sequence[int] = ()
    ) -> list[int]:
        """The ids of one text or list of ids, framed by those at the beginning and the end."""
        prompts = read_prompts(prompt, self._tokenizer, self._id_limit)
        if prompts.many:
            raise InvalidArgumentError("expected one text or one list of token ids; found several")
        ids = [*begin, *prompts.ids[0], *end]
        limit = self._core.info.context_length
        if limit and len(ids) > limit:
            raise InvalidArgumentError(
                f"{len(ids)} tokens are more than the model's context of {limit}"
            )
        return ids

    def _in_chunks(
        self, tokens: npt.NDArray[np.int64], size: int, source: str | Ids | None
    ) -> Iterator[npt.NDArray[np.float32]]:
        sequence = self._new_sequence(source)
        for begin in range(0, len(tokens), size):
            part = tokens[begin : begin + size]
            yield self._core.forward([(sequence, part, _core.Logits.ALL)])

    def _new_sequence(self, source: str | Ids | None) -> _core.Sequence:
        if source is None:
            return self._core.new_sequence()
        if isinstance(source, str):
            (ids,) = self._translator.source_ids([source], truncate=False, instead="pass token ids")
        else:
            ids = np.array(check_ids(source, "source", self._core.info.source_limit), np.int64)
        return self._core.new_sequences([ids])[0]

    def _spell(self, token: int) -> str:
        return f"<id {token}>" if self._tokenizer is None else self._tokenizer.token(token)
