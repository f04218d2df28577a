"""Tokenizers: characters or byte-level BPE, both lossless for any text, and BERT's WordPiece.

All are ordinary `tokenizers` pipelines. The saved tokenizer.json holds the decoder, so that the
`tokenizers` library alone turns ids into text again.

- char: one token per frequent character. A character outside the vocabulary is spelt as its UTF-8
  bytes (tokens <0x00> to <0xFF>), so that there is no unknown token and nothing is lost.
- bpe: byte-level BPE as in GPT-2.
- wordpiece: words and punctuation in pieces; white space and rare characters are lost. As in BERT,
  with the difference that case is kept.

The special tokens have the first ids, in the order in which a task names them. For texts that is
<|endoftext|> alone, which ends every document. They never come out of a text, not even out of one
that contains these characters: see `encode`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kvik_train.atomic import write_text
from kvik_train.errors import TrainError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TRANSLATION_TOKENS = ("<pad>", "<s>", "</s>")
TokenizerKind = Literal["char", "bpe"]
KINDS: tuple[TokenizerKind, ...] = ("char", "bpe")  # that spell any text
WORDPIECE = "wordpiece"

# Rarer characters than this share of the corpus are spelt as bytes: too rare to be learnt.
_RARE_CHARACTER = 1e-5
_BYTE_TOKENS = 256


def train_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int, special: Sequence[str] = (END_OF_TEXT,)
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, trained on texts."""
    check_tokenizer(kind, vocab_size, special)
    train = {"char": _train_char, "bpe": _train_bpe, "wordpiece": _train_wordpiece}[kind]
    tokenizer = train(texts, vocab_size, list(special))
    assert [tokenizer.token_to_id(token) for token in special] == list(range(len(special)))
    return tokenizer


def check_tokenizer(kind: str, vocab_size: int, special: Sequence[str] = (END_OF_TEXT,)) -> None:
    """Raise what is wrong with the settings of a tokenizer."""
    kinds = (WORDPIECE,) if "[UNK]" in special else KINDS
    if kind not in kinds:
        raise TrainError(
            f"unknown tokenizer {kind!r} for this task; --tokenizer takes {' or '.join(kinds)}"
        )
    least = len(special) + (_BYTE_TOKENS if kind != "wordpiece" else 1)
    if vocab_size < least:
        what = f"every byte and {', '.join(special)}" if kind != "wordpiece" else "special tokens"
        raise TrainError(f"--vocab-size is {vocab_size}; it must be at least {least}: {what}")


def _train_char(texts: Iterable[str], vocab_size: int, special: list[str]) -> Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    least = _RARE_CHARACTER * counts.total()
    frequent = [character for character, count in _by_frequency(counts) if count >= least]
    vocabulary = list(special)
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
    tokenizer.add_special_tokens(special)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _by_frequency(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first, ties by code point: independent of the order of the corpus."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _train_bpe(texts: Iterable[str], vocab_size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(texts: Iterable[str], vocab_size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        limit_alphabet=max(1, min(1000, vocab_size // 4)),
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
