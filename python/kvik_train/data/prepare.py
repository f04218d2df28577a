"""From a corpus to a folder that training reads: tokenizer.json, tokens.bin, data.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer

from kvik_train.atomic import atomic_write, write_json
from kvik_train.config import DataConfig
from kvik_train.data.corpus import Chunk, Corpus, open_corpus
from kvik_train.data.tokens import TokenArray, TokenWriter
from kvik_train.errors import TrainError
from kvik_train.tokenizer import (
    END_OF_TEXT_ID,
    check_tokenizer,
    encode,
    save_tokenizer,
    train_tokenizer,
)

# Chunks (about 64 KiB of text each) that are tokenised at once, in parallel.
_BATCH_CHUNKS = 64

Report = Callable[[str], None]


@dataclass(frozen=True)
class PreparedData:
    """What data.json records about the token file."""

    corpus: str  # name and, where it has one, version
    corpus_signature: str
    settings: dict[str, object]  # the DataConfig it was made with
    documents: int
    text_bytes: int
    vocab_size: int
    token_count: int
    dtype: str
    tokens_sha256: str

    @property
    def sha256(self) -> str:
        return self.tokens_sha256

    @property
    def labels(self) -> tuple[str, ...]:
        return ()


def tokens_path(folder: Path) -> Path:
    return folder / "data" / "tokens.bin"


def tokenizer_path(folder: Path) -> Path:
    return folder / "tokenizer.json"


def manifest_path(folder: Path) -> Path:
    return folder / "data" / "data.json"


def check_data(config: DataConfig, validation_fraction: float, window: int) -> None:
    """Raise what is wrong with the text or the tokenizer's settings; nothing is written."""
    check_tokenizer(config.tokenizer, config.vocab_size)
    corpus = open_corpus(config.source, config.max_bytes)
    corpus.check()
    # A text that is certainly too short; one that turns out to be is found when it is split.
    most = corpus.most_tokens()
    validation = int(most * validation_fraction)
    _check_room(corpus.name, {"training": most - validation, "validation": validation}, window)


def prepare(
    config: DataConfig, folder: Path, report: Report, tokenizer: Tokenizer | None = None
) -> PreparedData:
    """Train the tokenizer, or take the given one, and tokenise the corpus into `folder`.

    What is there is used again when it was made with the same settings from files that have not
    changed since, where the tokenizer is trained.
    """
    corpus = open_corpus(config.source, config.max_bytes)
    present = load_prepared(folder)
    if (
        present is not None
        and tokenizer is None
        and present.settings == asdict(config)
        and present.corpus_signature == corpus.signature()
    ):
        return present
    if tokenizer is None:
        report(f"corpus {corpus.name}: training the {config.tokenizer} tokenizer")
        tokenizer = train_tokenizer(
            config.tokenizer, (chunk.text for chunk in corpus.chunks()), config.vocab_size
        )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    manifest_path(folder).unlink(missing_ok=True)  # it speaks of the files replaced below
    save_tokenizer(tokenizer, tokenizer_path(folder))
    prepared = _tokenise(config, corpus, tokenizer, folder)
    write_json(manifest_path(folder), asdict(prepared))
    report(
        f"{prepared.documents} documents, {prepared.text_bytes / 1e6:.1f} MB of text, "
        f"{prepared.token_count:,} tokens, vocabulary {prepared.vocab_size}"
    )
    return prepared


def load_prepared(folder: Path) -> PreparedData | None:
    """What was prepared in `folder`, or None when that is missing or incomplete."""
    try:
        prepared = PreparedData(**json.loads(manifest_path(folder).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    complete = tokenizer_path(folder).is_file() and tokens_path(folder).is_file()
    return prepared if complete else None


def open_split(
    prepared: PreparedData, folder: Path, validation_fraction: float, window: int
) -> tuple[TokenArray, TokenArray]:
    """Training and validation tokens, each with room for one window at least."""
    tokens = TokenArray.open(tokens_path(folder), prepared.dtype, prepared.token_count)
    train, validation = tokens.split(validation_fraction)
    found = {"training": len(train), "validation": len(validation)}
    _check_room(prepared.corpus, found, window)
    return train, validation


def _check_room(corpus: str, tokens: Mapping[str, int], window: int) -> None:
    for split, count in tokens.items():
        if count < window:
            raise TrainError(
                f"the {split} split of {corpus} has {count} tokens, a window takes "
                f"{window}; use more text or a smaller --context"
            )


def _tokenise(
    config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, folder: Path
) -> PreparedData:
    vocab_size = tokenizer.get_vocab_size()
    documents = text_bytes = 0
    with atomic_write(tokens_path(folder)) as file:
        writer = TokenWriter(file, vocab_size)
        for chunks in _batched(corpus.chunks(), _BATCH_CHUNKS):
            texts = [chunk.text for chunk in chunks]
            for chunk, ids in zip(chunks, encode(tokenizer, texts), strict=True):
                writer.append(ids)
                text_bytes += len(chunk.text.encode())
                if chunk.ends_document:
                    writer.append([END_OF_TEXT_ID])
                    documents += 1
    return PreparedData(
        corpus=corpus.name,
        corpus_signature=corpus.signature(),
        settings=asdict(config),
        documents=documents,
        text_bytes=text_bytes,
        vocab_size=vocab_size,
        token_count=writer.count,
        dtype=writer.dtype.str,
        tokens_sha256=writer.sha256,
    )


def _batched(chunks: Iterator[Chunk], size: int) -> Iterator[list[Chunk]]:
    batch: list[Chunk] = []
    for chunk in chunks:
        batch.append(chunk)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
