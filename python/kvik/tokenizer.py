"""Where a model's tokenizer comes from, and how it is used.

The ``tokenizers`` library is imported when a tokenizer is first needed, not with ``kvik``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kvik.arguments import check_path
from kvik.errors import FileError, InvalidArgumentError, InvalidModelError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tokenizers

    TokenizerLike: TypeAlias = "str | os.PathLike[str] | tokenizers.Tokenizer"

__all__ = ["Tokenizer", "find_tokenizer", "require_tokenizer"]

METADATA_KEY = "kvik.tokenizer"  # in the model's metadata_props: the text of tokenizer.json
_FILE = "tokenizer.json"


class Tokenizer:
    """Text to token ids and back.

    A thin wrapper over ``tokenizers.Tokenizer`` (``.raw``), safe to use from several threads.
    """

    def __init__(self, raw: tokenizers.Tokenizer, source: str) -> None:
        self.raw = raw
        #: Where it came from: "the model's metadata", a path, or "the tokenizer argument".
        self.source = source
        self._plain: tokenizers.Tokenizer | None = None

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self.raw.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of text, with the special tokens that the tokenizer adds to a prompt.

        Raises:
            InvalidArgumentError: the text holds a surrogate, as text has that was decoded from
                bytes that are not UTF-8.
        """
        _check_text(text)
        return list(self.raw.encode(text, add_special_tokens=True).ids)

    def frame(
        self, text: str | list[str], pair: str | None = None, *, special: bool = True
    ) -> tokenizers.Encoding:
        """A text, its words, or a pair of texts, with the special tokens and where each came from.

        `special`: False leaves those out that the tokenizer adds.

        Nothing is cut or filled up, whatever the tokenizer's own settings.

        Raises:
            InvalidArgumentError: as :meth:`encode`.
        """
        for part in (*([text] if isinstance(text, str) else text), pair or ""):
            _check_text(part)
        return self._unlimited().encode(
            text, pair, is_pretokenized=isinstance(text, list), add_special_tokens=special
        )

    def _unlimited(self) -> tokenizers.Tokenizer:
        """A copy that neither truncates nor pads; files of encoders often say that they do."""
        if self._plain is None:
            plain = type(self.raw).from_str(self.raw.to_str())
            plain.no_truncation()
            plain.no_padding()
            self._plain = plain  # when it is ready: another thread may have made one, too
        return self._plain

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out. Bytes that are not UTF-8 become U+FFFD."""
        return str(self.raw.decode(list(ids), skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """The vocabulary's own spelling of an id, e.g. "Ġthe"; "<id 7>" where it has none."""
        token = self.raw.id_to_token(token_id)
        return token if token is not None else f"<id {token_id}>"

    def id_of(self, token: str) -> int | None:
        """The id of a vocabulary entry, or None."""
        found = self.raw.token_to_id(token)
        return None if found is None else int(found)

    def __repr__(self) -> str:
        return f"<kvik.Tokenizer of {self.vocab_size} tokens from {self.source}>"


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"the text holds the surrogate U+{ord(text[error.start]):04X} at index "
            f"{error.start}, which is no character: pass text that was UTF-8"
        ) from None


def require_tokenizer(
    tokenizer: Tokenizer | None, what: str = "texts", instead: str = ""
) -> Tokenizer:
    """The tokenizer, or an error that says how to get one, or what to do without."""
    if tokenizer is None:
        raise InvalidArgumentError(
            f"{what} need a tokenizer, and this model has none: pass "
            f"tokenizer='path/to/tokenizer.json' to kvik.load, or put tokenizer.json beside the "
            f"model{instead and f', or {instead}'}"
        )
    return tokenizer


def find_tokenizer(
    model: Path, metadata: Mapping[str, str], given: TokenizerLike | None
) -> Tokenizer | None:
    """The tokenizer that was given, else the model's own, else tokenizer.json beside it, else None.

    Raises:
        FileError: the file that was given can't be read.
        InvalidArgumentError: what was given is no tokenizer.
        InvalidModelError: the model carries a tokenizer that can't be read.
    """
    if given is not None:
        return _given_tokenizer(given)
    if METADATA_KEY in metadata:
        where = f"the metadata of {model} ({METADATA_KEY})"
        try:
            return _parse(metadata[METADATA_KEY], "the model's metadata", where)
        except InvalidArgumentError as error:
            raise InvalidModelError(
                f"{error}; pass tokenizer= to use another, or export the model again"
            ) from error.__cause__
    beside = model.parent / _FILE
    return _read(beside) if beside.is_file() else None


def _given_tokenizer(given: TokenizerLike) -> Tokenizer:
    if isinstance(given, (str, os.PathLike)):
        path = check_path(given)
        return _read(path / _FILE if path.is_dir() else path)
    if hasattr(given, "encode") and hasattr(given, "decode") and hasattr(given, "id_to_token"):
        return Tokenizer(given, "the tokenizer argument")
    raise InvalidArgumentError(
        f"tokenizer must be the path of a {_FILE}, a folder that holds one, or a "
        f"tokenizers.Tokenizer; found {type(given).__name__}"
    )


def _read(path: Path) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileError(f"no tokenizer at {path}: pass the path of a {_FILE}") from None
    except OSError as error:
        raise FileError(f"can't read the tokenizer {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"the tokenizer {path} is not UTF-8 text: pass a {_FILE} of the tokenizers library"
        ) from error
    return _parse(text, str(path), str(path))


def _parse(text: str, source: str, where: str) -> Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise UnsupportedError(
            "text prompts need the tokenizers package: pip install tokenizers "
            "(or pass token ids instead of text)"
        ) from error
    try:
        raw = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception for any malformed file
        raise InvalidArgumentError(
            f"{where} is not a tokenizer that the tokenizers library reads: {_one_line(error)}"
        ) from error
    return Tokenizer(raw, source)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
