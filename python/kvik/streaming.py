"""From token ids to text, piece by piece.

Two steps, each usable alone:

- :class:`TokenDecoder` turns ids into text and never splits a UTF-8 character;
- :class:`StopScanner` ends the text where a stop string begins and holds back what may yet become
  one.

:class:`TextStream` is both in a row. The pieces of a stream joined together are the text that
``Model.generate`` returns: it is made by the very same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvik.errors import InvalidArgumentError

__all__ = ["StopScanner", "TextStream", "TokenDecoder", "check_stop"]

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not (yet) UTF-8
# An unfinished character is at most three bytes. Byte-level decoders write one replacement
# character for them, byte-fallback decoders one per byte.
_UNFINISHED = 3
_WINDOW = 8  # tokens after which text that never becomes UTF-8 is let go
_CONTEXT = 4  # tokens, at least, that are decoded along, so that leading spaces come out right
_FARTHEST = 32  # tokens of the prompt that are searched for some that have a text
_MOST_PARTS = 8  # parts of the context: bounds a step where no token has a text


def check_stop(stop: object) -> tuple[str, ...]:
    """The stop strings as a tuple. Raises InvalidArgumentError for anything else than text."""
    if stop is None:
        return ()
    if isinstance(stop, str):
        stops: tuple[object, ...] = (stop,)
    elif isinstance(stop, Iterable) and not isinstance(stop, bytes):
        stops = tuple(stop)
    else:
        raise InvalidArgumentError(
            f"stop must be a string or a list of strings; found {type(stop).__name__}"
        )
    checked = []
    for item in stops:
        if not isinstance(item, str):
            raise InvalidArgumentError(
                f"stop must be a string or a list of strings; found {type(item).__name__} "
                f"(token ids that end the text go to stop_ids)"
            )
        if not item:
            raise InvalidArgumentError("stop contains an empty string, which would match at once")
        checked.append(item)
    return tuple(checked)


class TokenDecoder:
    """Text of a growing list of token ids, in pieces that hold whole characters.

    ``decode`` maps ids to text and may depend on neighbours (a leading space that a decoder strips,
    characters spread over several tokens), so each new token is decoded together with the few
    before it, its context. A step decodes a bounded number of tokens, however long the text is.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        # The context: tokens whose text is out already, in parts that hold whole characters.
        self._parts = [_end_of(prompt, decode)] if len(prompt) else []
        self._before = decode(self._parts[0]) if self._parts else ""  # text of the context
        self._window: list[int] = []  # tokens whose text is held back

    def push(self, token: int) -> str:
        """The text that is certain once ``token`` has been added; often empty."""
        self._window.append(token)
        text = self._text(self._window)
        if text.endswith(_REPLACEMENT):
            return self._let_go(text) if len(self._window) > _WINDOW else ""
        self._commit(len(self._window))
        return text

    def flush(self) -> str:
        """The rest of the text; what is unfinished now becomes U+FFFD."""
        text = self._text(self._window) if self._window else ""
        self._commit(len(self._window))
        return text

    def _text(self, tokens: list[int]) -> str:
        """Text of tokens as it reads after the tokens before them."""
        text = self._decode([*_joined(self._parts), *tokens])
        if text.startswith(self._before):
            return text[len(self._before) :]
        # The neighbours changed the reading of what is out (a byte-fallback decoder judges a run of
        # byte tokens as a whole): read the new tokens by themselves.
        return self._decode(tokens)

    def _commit(self, count: int) -> None:
        """The text of the first `count` tokens of the window is out."""
        if not count:
            return
        self._parts.append(self._window[:count])
        self._window = self._window[count:]
        # A context without text, such as special tokens, would make what follows the beginning of
        # a text, whose leading space decoders strip.
        while len(rest := _joined(self._parts[1:])) >= _CONTEXT and self._decode(rest):
            del self._parts[0]
        if len(self._parts) > _MOST_PARTS:
            del self._parts[1]  # the first has the text, and this one has none
        self._before = self._decode(_joined(self._parts))

    def _let_go(self, text: str) -> str:
        """Text that is not UTF-8 and never will be: all but the tokens that may yet become it."""
        for count in range(len(self._window) - _UNFINISHED, 0, -1):
            head = self._text(self._window[:count])
            if head + self._decode(self._window[count:]) == text:
                self._commit(count)
                return head
        self._commit(len(self._window))
        return text


def _end_of(prompt: Sequence[int], decode: Decode) -> list[int]:
    """The fewest tokens that a context may begin with: some text, and no half of a character."""
    ids = list(prompt)
    for count in range(min(_CONTEXT, len(ids)), min(_FARTHEST, len(ids)) + 1):
        text = decode(ids[-count:])
        if text and not text.startswith(_REPLACEMENT):
            return ids[-count:]
    return ids[-_FARTHEST:]  # without text, but perhaps with the one space that decoders strip


def _joined(parts: list[list[int]]) -> list[int]:
    return [token for part in parts for token in part]


class StopScanner:
    """Ends a text just before the first stop string that is completed in it.

    Where several stop strings are completed by the same character, the longest counts. The result
    does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is certain once ``piece`` has been added; sets ``stopped`` at a match."""
        if self.stopped:
            return ""
        text = self._held + piece
        matches = [
            (start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0
        ]
        if matches:
            self.stopped = True
            self._held = ""
            return text[: min(matches)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a proper beginning of stop."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class TextStream:
    """Ids in, certain text out, until a stop string is complete."""

    def __init__(self, decode: Decode, stops: Sequence[str] = (), prompt: Sequence[int] = ()):
        self._decoder = TokenDecoder(decode, prompt)
        self._scanner = StopScanner(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed: no token after this one matters."""
        return self._scanner.stopped

    def push(self, token: int) -> str:
        return self._scanner.push(self._decoder.push(token))

    def finish(self) -> str:
        """The rest of the text, once no token follows."""
        if self.stopped:
            return ""
        return self._scanner.push(self._decoder.flush()) + self._scanner.flush()
