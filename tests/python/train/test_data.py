"""Token files, splits, windows and the sampler."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvik_train.config import DataConfig
from kvik_train.data import corpus, prepare
from kvik_train.data.sampler import dropout_seed, evaluation_starts, window_starts
from kvik_train.data.tokens import TokenArray, TokenWriter, token_dtype
from kvik_train.errors import TrainError
from kvik_train.tokenizer import END_OF_TEXT_ID, load_tokenizer


def ignore(text: str) -> None: ...


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "<u2"), (65537, "<u4")])
def test_narrowest_type_and_round_trip(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    with path.open("wb") as file:
        writer = TokenWriter(file, vocab_size)
        writer.append([0, 1, vocab_size - 1])
        writer.append([])
        writer.append([7])
        for bad in ([vocab_size], [-1]):
            with pytest.raises(ValueError, match="outside the vocabulary"):
                writer.append(bad)
    assert token_dtype(vocab_size).str == writer.dtype.str == dtype
    tokens = TokenArray.open(path, dtype, writer.count)
    assert tokens.windows([0, 2], 2).tolist() == [[0, 1], [vocab_size - 1, 7]]
    with pytest.raises(TrainError, match="bytes, expected"):
        TokenArray.open(path, dtype, writer.count + 1)


def test_split_is_disjoint_and_complete() -> None:
    tokens = TokenArray(np.arange(1000, dtype="<u2"))
    train, validation = tokens.split(0.1)
    assert (len(train), len(validation)) == (900, 100)
    seen_in_training = train.windows(range(900 - 9), 10)
    seen_in_validation = validation.windows(range(100 - 9), 10)
    assert set(seen_in_training.flat) == set(range(900))
    assert set(seen_in_validation.flat) == set(range(900, 1000))


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_corpus_of_many_chunks_is_written_whole(
    kind: str, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text far larger than the pieces it is read and tokenised in."""
    monkeypatch.setattr(corpus, "_READ_BYTES", 100)
    monkeypatch.setattr(prepare, "_BATCH_CHUNKS", 3)
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.txt").write_bytes(f"{index} ".encode() + corpus_file.read_bytes())
    out = tmp_path / "out"
    config = DataConfig(str(folder), tokenizer=kind, vocab_size=300)
    made = prepare.prepare(config, out, ignore)
    ids = np.fromfile(prepare.tokens_path(out), made.dtype)
    assert (made.documents, made.token_count) == (3, len(ids))
    tokenizer = load_tokenizer(prepare.tokenizer_path(out))
    ends = np.flatnonzero(ids == END_OF_TEXT_ID)
    assert ends[-1] == len(ids) - 1
    found = [tokenizer.decode(part.tolist()) for part in np.split(ids, ends + 1)[:-1]]
    expected = [path.read_bytes().decode() for path in corpus.open_corpus(str(folder)).files]
    assert found == expected
    assert made.text_bytes == sum(len(text.encode()) for text in expected)


def test_preparing_again_reuses_and_notices_changes(corpus_file: Path, tmp_path: Path) -> None:
    config, out = DataConfig(str(corpus_file)), tmp_path / "out"
    first = prepare.prepare(config, out, ignore)
    written = prepare.tokens_path(out).stat().st_mtime_ns
    assert prepare.prepare(config, out, ignore) == first
    assert prepare.tokens_path(out).stat().st_mtime_ns == written
    other = prepare.prepare(replace(config, max_bytes=2000), out, ignore)
    assert other.token_count < first.token_count
    corpus_file.write_text("another text " * 100)
    assert prepare.prepare(config, out, ignore).tokens_sha256 != first.tokens_sha256
    manifest = json.loads((out / "data" / "data.json").read_text())
    assert manifest["vocab_size"] == 257 + len(set("another text "))


def test_failed_preparation_leaves_no_half_file(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TokenWriter, ids: list[int]) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TokenWriter, "append", fail)
    with pytest.raises(OSError, match="no space"):
        prepare.prepare(DataConfig(str(corpus_file)), tmp_path / "out", ignore)
    assert list((tmp_path / "out" / "data").iterdir()) == []
    assert prepare.load_prepared(tmp_path / "out") is None


def test_corpus_too_small_for_a_window(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a short text")
    made = prepare.prepare(DataConfig(str(tmp_path / "short.txt")), tmp_path / "out", ignore)
    with pytest.raises(TrainError, match=r"validation split of short\.txt has 3 tokens"):
        prepare.open_split(made, tmp_path / "out", 0.25, window=9)


def test_windows_are_a_function_of_seed_and_step() -> None:
    assert window_starts(1, 5, 8, 1000) == window_starts(1, 5, 8, 1000)
    assert window_starts(1, 5, 4, 1000) == window_starts(1, 5, 8, 1000)[:4]
    others = [window_starts(1, 6, 8, 1000), window_starts(2, 5, 8, 1000)]
    assert window_starts(1, 5, 8, 1000) not in others
    # Fixed values: a change of the stream would break every resumed run.
    assert window_starts(1, 0, 4, 1_000_000) == FIXED_STARTS


FIXED_STARTS = [857887, 550255, 394738, 357666]


def test_windows_are_uniform() -> None:
    """Chi-square of 20,000 draws over 10 starts, against the 1e-6 quantile for 9 degrees."""
    counts = Counter(s for step in range(1000) for s in window_starts(3, step, 20, 10))
    assert set(counts) == set(range(10))
    chi_square = sum((count - 2000) ** 2 / 2000 for count in counts.values())
    assert chi_square < 44.8


def test_evaluation_windows_span_the_split() -> None:
    assert evaluation_starts(5, 101) == [0, 25, 50, 75, 100]
    assert evaluation_starts(5, 3) == [0, 1, 2]
    assert evaluation_starts(1, 10) == [0]


def test_dropout_seeds_differ() -> None:
    seeds = {
        dropout_seed(seed, step, part, rank)
        for seed in range(3) for step in range(5) for part in range(3) for rank in range(3)
    }  # fmt: skip
    assert len(seeds) == 3 * 5 * 3 * 3
    assert all(0 <= seed < 1 << 64 for seed in seeds)
