"""Tokenizers: characters or byte-level BPE, both lossless for any text.

Both are ordinary `tokenizers` pipelines. The saved tokenizer.json holds the decoder, so that the
`tokenizers` library alone turns ids into text again.

- char: one token per frequent character. A character outside the vocabulary is spelt as its UTF-8
  bytes (tokens <0x00> to <0xFF>), so that there is no unknown token and nothing is lost.
- bpe: byte-level BPE as in GPT-2.

Id 0 is <|endoftext|> in both; it ends every document. It never comes out of a text, not even out
of one that contains these characters: see `encode`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kvik_train.atomic import write_text
from kvik_train.errors import TrainError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
TokenizerKind = Literal["char", "bpe"]
KINDS: tuple[TokenizerKind, ...] = ("char", "bpe")

# Rarer characters than this share of the corpus are spelt as bytes: too rare to be learnt.
_RARE_CHARACTER = 1e-5
_BYTE_TOKENS = 256


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, trained on texts."""
    check_tokenizer(kind, vocab_size)
    tokenizer = (_train_char if kind == "char" else _train_bpe)(texts, vocab_size)
    assert tokenizer.token_to_id(END_OF_TEXT) == END_OF_TEXT_ID
    return tokenizer


def check_tokenizer(kind: str, vocab_size: int) -> None:
    """Raise what is wrong with the settings of a tokenizer."""
    if kind not in KINDS:
        raise TrainError(f"unknown tokenizer {kind!r}; --tokenizer takes {' or '.join(KINDS)}")
    if vocab_size < _BYTE_TOKENS + 1:
        raise TrainError(
            f"--vocab-size is {vocab_size}; it must be at least {_BYTE_TOKENS + 1}: "
            f"every byte and {END_OF_TEXT}"
        )


def _train_char(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    least = _RARE_CHARACTER * counts.total()
    frequent = [character for character, count in _by_frequency(counts) if count >= least]
    vocabulary = [END_OF_TEXT]
    vocabulary += [f"<0x{byte:02X}>" for byte in range(_BYTE_TOKENS)]
    vocabulary += sorted(frequent[: vocab_size - len(vocabulary)])
    # BPE without merges is the model of the library that can fall back to bytes.
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(vocabulary)},
            merges=[],
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _by_frequency(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first, ties by code point: independent of the order of the corpus."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    write_text(path, tokenizer.to_str())


def load_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainError(f"no tokenizer at {path}; it is saved beside the checkpoint") from None
    except Exception as error:  # the library raises plain Exception for a malformed file
        raise TrainError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error


def encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """The ids of each text; "<|endoftext|>" within a text is ordinary characters."""
    tokenizer.encode_special_tokens = True
    try:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    finally:
        tokenizer.encode_special_tokens = False
    for encoding in encodings:
        yield encoding.ids
