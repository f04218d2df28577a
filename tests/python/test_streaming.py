"""Text in pieces: no split characters, no stop strings, the same text however it is cut."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from kvik import InvalidArgumentError
from kvik.streaming import StopScanner, TextStream, TokenDecoder, check_stop

TEXT = st.text(alphabet="ab é€😀\u0301\n漢", max_size=24)


def byte_fallback_tokenizer():
    """Ids 0 to 255 are bytes, 256 on are characters: the spelling of rare characters by bytes."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"a": 256, "b": 257, " ": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def stream(decode, ids, stops=(), prompt=()):
    run = TextStream(decode, stops, prompt)
    pieces = []
    for token in ids:
        pieces.append(run.push(token))
        if run.stopped:
            break
    pieces.append(run.finish())
    return pieces, run


@given(text=TEXT)
def test_byte_level_pieces_are_whole_characters(tokenizer, text):
    ids = tokenizer.encode(text).ids
    pieces, _ = stream(tokenizer.decode, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    # Each character comes with its last byte, no later.
    assert pieces[-1] == ""


@given(text=TEXT)
def test_byte_fallback_pieces_are_whole_characters(text):
    tokenizer = byte_fallback_tokenizer()
    pieces, _ = stream(tokenizer.decode, tokenizer.encode(text).ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(data=st.binary(max_size=40))
@settings(max_examples=300)
def test_any_bytes_come_out_as_the_decoder_reads_them(tokenizer, data):
    """A model may emit bytes that are no UTF-8 at all, for as long as it likes."""
    byte_of = byte_to_id(tokenizer)
    ids = [byte_of[byte] for byte in data]
    pieces, _ = stream(tokenizer.decode, ids)
    assert "".join(pieces) == tokenizer.decode(ids) == data.decode("utf-8", "replace")


def byte_to_id(tokenizer):
    """Id of every byte of a byte-level vocabulary (GPT-2's table of printable stand-ins)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in stand_in]
    stand_in |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {byte: tokenizer.token_to_id(character) for byte, character in stand_in.items()}


@given(data=st.lists(st.integers(0, 258), max_size=60))
@settings(max_examples=300)
def test_any_tokens_of_a_byte_fallback_keep_all_valid_text(data):
    """Whatever follows, text that was said is never taken back, and plain characters all appear."""
    tokenizer = byte_fallback_tokenizer()
    pieces, _ = stream(tokenizer.decode, data)
    plain = [{256: "a", 257: "b", 258: " "}[token] for token in data if token > 255]
    spoken = "".join(pieces)
    kept = iter(spoken)
    assert all(character in kept for character in plain), "a character is missing or out of order"


def test_invalid_bytes_do_not_accumulate(tokenizer):
    """Endless invalid bytes are decoded in windows of bounded size."""
    longest = 0

    def decode(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return tokenizer.decode(ids)

    lone = byte_to_id(tokenizer)[0x80]
    pieces, _ = stream(decode, [lone] * 500)
    assert "".join(pieces) == "\ufffd" * 500
    assert longest < 32


def test_leading_space_depends_on_the_prompt():
    """SentencePiece-style decoders strip the first space: not in the middle of a text."""
    vocab = {"▁hello": 0, "▁world": 1}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="▁hello"))
    tokenizer.decoder = decoders.Metaspace()
    pieces, _ = stream(tokenizer.decode, [1], prompt=[0])
    assert "".join(pieces) == " world"
    pieces, _ = stream(tokenizer.decode, [1, 0])
    assert "".join(pieces) == "world hello"


def sentence_tokenizer(decoder):
    """SentencePiece's spelling of spaces, and two special tokens that decode to nothing."""
    words = ["▁hello", "▁world", "▁", "x", "."]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="x"))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>", "</s>"])  # ids 5 and 6
    return tokenizer


LLAMA = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
SENTENCE_DECODERS = pytest.mark.parametrize(
    "decoder", [decoders.Metaspace(), LLAMA], ids=["metaspace", "llama"]
)


@SENTENCE_DECODERS
def test_a_space_after_special_tokens_stays(decoder):
    tokenizer = sentence_tokenizer(decoder)
    for count in (1, 2, 5, 20):
        for prompt, ids in (([0], [6] * count + [1]), ([0] + [6] * count, [1])):
            pieces, _ = stream(tokenizer.decode, ids, prompt=prompt)
            assert "".join(pieces) == " world", (count, prompt)


@SENTENCE_DECODERS
@given(
    prompt=st.lists(st.integers(0, 6), max_size=10), ids=st.lists(st.integers(0, 6), max_size=30)
)
@settings(max_examples=300)
@example(prompt=[2, 5, 5, 5, 5], ids=[0])
def test_text_after_a_prompt_is_what_the_tokenizer_adds(decoder, prompt, ids):
    decode = sentence_tokenizer(decoder).decode
    pieces, _ = stream(decode, ids, prompt=prompt)
    assert decode(prompt) + "".join(pieces) == decode(prompt + ids)


@given(prompt=TEXT, text=TEXT)
def test_characters_of_the_prompt_are_not_cut(prompt, text):
    """Characters spelt by bytes, of which a context of a fixed length would begin with a half."""
    tokenizer = byte_fallback_tokenizer()
    before, ids = tokenizer.encode(prompt).ids, tokenizer.encode(text).ids
    pieces, _ = stream(tokenizer.decode, ids, prompt=before)
    assert "".join(pieces) == text


def test_endless_special_tokens_do_not_accumulate():
    tokenizer = sentence_tokenizer(decoders.Metaspace())
    longest = 0

    def decode(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return tokenizer.decode(ids)

    pieces, _ = stream(decode, [0] + [6] * 500 + [1])
    assert "".join(pieces) == "hello world"
    assert longest < 32


def expected_stop(text, stops):
    """Brute force: cut before the stop string that is completed first, the longest on ties."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


CUTS = st.lists(st.text(alphabet="abc", max_size=5), max_size=8)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@given(pieces=CUTS, stops=STOPS)
@settings(max_examples=500)
def test_stop_strings_do_not_depend_on_the_cuts(pieces, stops):
    scanner = StopScanner(stops)
    out = [scanner.push(piece) for piece in pieces]
    if not scanner.stopped:
        out.append(scanner.flush())
    assert ("".join(out), scanner.stopped) == expected_stop("".join(pieces), stops)


@given(pieces=CUTS, stops=STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(pieces, stops):
    scanner = StopScanner(stops)
    seen = out = ""
    for piece in pieces:
        seen += piece
        out += scanner.push(piece)
        if scanner.stopped:
            break
        held = seen[len(out) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@given(text=TEXT, stops=st.lists(st.text(alphabet="ab é", min_size=1, max_size=3), max_size=2))
def test_stream_with_stops_is_the_cut_text(tokenizer, text, stops):
    pieces, run = stream(tokenizer.decode, tokenizer.encode(text).ids, stops)
    assert ("".join(pieces), run.stopped) == expected_stop(text, stops)


def test_a_decoder_that_rewrites_its_text_does_not_break_the_stream():
    def shouting(ids):
        return "".join("ab"[i] for i in ids).upper() if len(ids) > 2 else "x" * len(ids)

    pieces, _ = stream(shouting, [0, 1, 0, 1])
    assert all(isinstance(piece, str) for piece in pieces)


@pytest.mark.parametrize(
    ("stop", "words"),
    [("", "empty string"), (["a", ""], "empty string"), ([1], "string"), ([b"a"], "found bytes")],
)
def test_bad_stop_strings(stop, words):
    with pytest.raises(InvalidArgumentError, match=words):
        check_stop(stop)


def test_decoder_flushes_an_unfinished_character(tokenizer):
    euro = tokenizer.encode("€").ids
    decoder = TokenDecoder(tokenizer.decode)
    assert [decoder.push(token) for token in euro[:2]] == ["", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
