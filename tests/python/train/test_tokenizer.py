"""Tokenizers lose nothing, whatever the text, and their file alone can decode."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kvik_train.errors import TrainError
from kvik_train.tokenizer import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    KINDS,
    encode,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

from .conftest import SENTENCES

TRAINED = {kind: train_tokenizer(kind, SENTENCES * 50, 400) for kind in KINDS}
# All of Unicode but lone surrogates, which are not text; with pieces that look like tokens.
TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*SENTENCES, END_OF_TEXT, "<0x41>", "\r\n", "\0", "Ġ", "é"])).map(
        "".join
    ),
)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@settings(deadline=None)
def test_round_trip_of_any_text(kind: str, text: str) -> None:
    (ids,) = encode(TRAINED[kind], [text])
    assert END_OF_TEXT_ID not in ids
    assert TRAINED[kind].decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_decodes_alone(kind: str, tmp_path: Path) -> None:
    save_tokenizer(TRAINED[kind], tmp_path / "tokenizer.json")
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "naïve  漢字\n\tok 🙂 ¤"
    ids = loaded.encode(text).ids
    assert loaded.decode(ids) == text
    assert [ids] == list(encode(TRAINED[kind], [text]))
    assert loaded.token_to_id(END_OF_TEXT) == END_OF_TEXT_ID
    assert loaded.decode([END_OF_TEXT_ID, *ids]) == text  # special tokens are not text


def test_char_has_one_token_per_character_it_knows() -> None:
    tokenizer = TRAINED["char"]
    (ids,) = encode(tokenizer, ["é漢🙂"])
    assert len(ids) == 3
    (ids,) = encode(tokenizer, ["¤"])  # unknown: its two UTF-8 bytes
    assert [tokenizer.id_to_token(i) for i in ids] == ["<0xC2>", "<0xA4>"]
    assert tokenizer.get_vocab_size() == 1 + 256 + len(set("".join(SENTENCES)))


def test_char_keeps_the_most_frequent_characters() -> None:
    tokenizer = train_tokenizer("char", ["aaabbbccd"], 257 + 2)
    assert {tokenizer.id_to_token(257), tokenizer.id_to_token(258)} == {"a", "b"}
    rare = train_tokenizer("char", ["a" * 100_001 + "b"], 400)  # b: less than 1 in 100,000
    assert rare.token_to_id("b") is None
    assert rare.decode(next(iter(encode(rare, ["ab"])))) == "ab"


def test_bpe_merges_and_keeps_to_its_size() -> None:
    tokenizer = TRAINED["bpe"]
    text = "".join(SENTENCES)
    (ids,) = encode(tokenizer, [text])
    assert len(ids) < 0.7 * len(text)
    assert tokenizer.get_vocab_size() <= 400


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(kind: str) -> None:
    again = train_tokenizer(kind, SENTENCES * 50, 400)
    assert again.to_str() == TRAINED[kind].to_str()


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="unknown tokenizer 'word'"):
        train_tokenizer("word", [], 400)
    with pytest.raises(TrainError, match="--vocab-size is 100"):
        train_tokenizer("char", [], 100)
    with pytest.raises(TrainError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(TrainError, match="is not a tokenizer"):
        load_tokenizer(tmp_path / "bad.json")
