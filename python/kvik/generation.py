"""One call of generate() or stream(): its arguments checked, its tokens turned into text."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvik import _core
from kvik.arguments import check_count, check_ids, check_number
from kvik.errors import InvalidArgumentError
from kvik.streaming import TextStream, check_stop
from kvik.tokenizer import require_tokenizer

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    from kvik.tokenizer import Tokenizer

    class SettingsDict(TypedDict, total=False):
        """The keyword arguments of Model.generate and Model.stream."""

        max_new_tokens: int
        temperature: float
        top_k: int | None
        top_p: float | None
        min_p: float | None
        repetition_penalty: float
        logit_bias: Mapping[int, float] | None
        stop: str | Sequence[str] | None
        stop_ids: Sequence[int] | None
        seed: int | None


__all__ = ["DEFAULT_NEW_TOKENS", "Piece", "Prompts", "Run", "Settings", "read_prompts"]

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class Prompts:
    """What the caller passed as ``prompt``, as token ids."""

    ids: list[list[int]]
    text: bool  # the answer is text
    many: bool  # the answer is a list of answers


def read_prompts(prompt: object, tokenizer: Tokenizer | None, vocab_size: int) -> Prompts:
    """Text, token ids, or a list of either.

    Raises:
        InvalidArgumentError: it is none of these, is empty, or is text for a model that has no
            tokenizer.
    """
    if isinstance(prompt, str):
        return Prompts([_encode(prompt, "prompt", tokenizer, vocab_size)], text=True, many=False)
    if isinstance(prompt, (list, tuple)) and prompt:
        if isinstance(prompt[0], str):
            ids = [
                _encode(item, f"prompt[{i}]", tokenizer, vocab_size)
                for i, item in enumerate(prompt)
            ]
            return Prompts(ids, text=True, many=True)
        if isinstance(prompt[0], (list, tuple, np.ndarray)):
            ids = [_ids(item, f"prompt[{i}]", vocab_size) for i, item in enumerate(prompt)]
            return Prompts(ids, text=False, many=True)
    return Prompts([_ids(prompt, "prompt", vocab_size)], text=False, many=False)


def _encode(text: object, name: str, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    if not isinstance(text, str):
        raise InvalidArgumentError(
            f"{name} must be text like the prompts before it; found {type(text).__name__}"
        )
    return _ids(
        require_tokenizer(tokenizer, "text prompts", "use token ids").encode(text), name, vocab_size
    )


def _ids(ids: object, name: str, vocab_size: int) -> list[int]:
    checked = check_ids(ids, name, vocab_size)
    if not checked:
        raise InvalidArgumentError(f"{name} is empty: pass at least one token")
    return checked


@dataclass(frozen=True)
class Settings:
    """How to continue a prompt. The engine checks the ranges of the sampling options."""

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    stop: str | Sequence[str] | None = None
    stop_ids: Sequence[int] | None = None
    seed: int | None = None

    def request(self, prompt: list[int], end_ids: Sequence[int]) -> _core.GenerateRequest:
        """The engine's form; ``end_ids`` end the text unless stop_ids says otherwise."""
        stop_ids = end_ids if self.stop_ids is None else check_ids(self.stop_ids, "stop_ids")
        return _core.GenerateRequest(
            prompt,
            check_count(self.max_new_tokens, "max_new_tokens", 0),
            self.sampler(),
            list(stop_ids),
        )

    def sampler(self) -> _core.SamplerOptions:
        """The sampling options in the engine's form, their types checked."""
        seed = secrets.randbits(64) if self.seed is None else self.seed
        return _core.SamplerOptions(
            temperature=check_number(self.temperature, "temperature"),
            top_k=0 if self.top_k is None else check_count(self.top_k, "top_k", 0),
            top_p=1.0 if self.top_p is None else check_number(self.top_p, "top_p"),
            min_p=0.0 if self.min_p is None else check_number(self.min_p, "min_p"),
            repetition_penalty=check_number(self.repetition_penalty, "repetition_penalty"),
            logit_bias=_check_bias(self.logit_bias),
            seed=check_count(seed, "seed", 0, 2**64 - 1),
        )


def _check_bias(bias: Mapping[int, float] | None) -> list[tuple[int, float]]:
    if bias is None:
        return []
    if not isinstance(bias, Mapping):
        raise InvalidArgumentError(
            f"logit_bias must map token ids to numbers; found {type(bias).__name__}"
        )
    ids = check_ids(list(bias), "logit_bias keys")
    values = [check_number(bias[key], f"logit_bias[{key}]") for key in bias]
    return list(zip(ids, values, strict=True))


@dataclass(frozen=True)
class Piece:
    """What one step gave one prompt."""

    request: int  # index of the prompt
    token: int | None  # the new token; None: the prompt ended without one
    text: str  # what became certain; always "" where no text was asked for
    reason: str | None  # "length", "stop_id", "context" or "stop" when the prompt has ended


class Run:
    """Continues prompts, all of them in one flat batch; iterate for the pieces.

    Made for one iteration by one thread. Leaving it half-way is fine.
    """

    def __init__(
        self,
        core: _core.Model,
        prompts: Prompts,
        settings: Settings,
        end_ids: Sequence[int],
        tokenizer: Tokenizer | None,
    ) -> None:
        stops = check_stop(settings.stop)
        requests = [settings.request(ids, end_ids) for ids in prompts.ids]
        self._streams: list[TextStream] | None = None
        if prompts.text or stops:
            decode = require_tokenizer(tokenizer, "stop strings", "use stop_ids").decode
            self._streams = [TextStream(decode, stops, ids) for ids in prompts.ids]
        self._text = prompts.text
        self._generator = _core.Generator(core, requests)

    def __iter__(self) -> Iterator[Piece]:
        ended: set[int] = set()
        while not self._generator.done:
            for event in self._generator.step():
                if event.request not in ended:
                    piece = self._piece(event)
                    if piece.reason is not None:
                        ended.add(event.request)
                    yield piece

    def _piece(self, event: _core.GenerateEvent) -> Piece:
        token = event.token if event.token >= 0 else None
        if self._streams is None:
            return Piece(event.request, token, "", event.reason)
        stream = self._streams[event.request]
        text = "" if token is None else stream.push(token)
        reason = event.reason
        if not stream.stopped and reason is not None:
            text += stream.finish()
        if stream.stopped:
            self._generator.stop(event.request)
            reason = "stop"
        return Piece(event.request, token, text if self._text else "", reason)
