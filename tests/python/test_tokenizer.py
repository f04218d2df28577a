"""Where the tokenizer comes from."""

import onnx
import pytest
from onnx import helper

import kvik


@pytest.fixture
def bare(tmp_path, plain_path):
    """The model without a tokenizer, in a folder of its own."""
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(plain_path.read_bytes())
    return path


def test_from_the_metadata(text):
    assert text.tokenizer.source == "the model's metadata"
    assert text.tokenizer.vocab_size == 257


def test_beside_the_model(bare, tokenizer):
    assert kvik.load(bare).tokenizer is None
    (bare.parent / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    assert kvik.load(bare).generate("abc", max_new_tokens=3, stop_ids=()) is not None


def test_as_an_argument(bare, tokenizer, tmp_path, text):
    file = tmp_path / "other" / "tokenizer.json"
    file.parent.mkdir()
    file.write_text(tokenizer.to_str(), encoding="utf-8")
    expected = text.generate("abc", max_new_tokens=5, stop_ids=())
    for given in (file, str(file), file.parent, tokenizer):
        model = kvik.load(bare, tokenizer=given)
        assert model.generate("abc", max_new_tokens=5, stop_ids=()) == expected


def test_end_of_text_is_found_in_the_vocabulary(bare, tokenizer):
    assert kvik.load(bare, tokenizer=tokenizer).stop_ids == (256,)


def test_text_without_a_tokenizer_says_what_to_do(bare):
    model = kvik.load(bare)
    for call in (model.generate, model.stream, model.logits, model.score):
        with pytest.raises(kvik.InvalidArgumentError, match=r"pass tokenizer=.*or use token ids"):
            call("hello")
    with pytest.raises(kvik.InvalidArgumentError, match=r"^stop strings need .*or use stop_ids"):
        model.generate([1], stop="x")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "not a tokenizer"), ("[1", "not a tokenizer"), ("\xff", "not a tokenizer")],
)
def test_a_broken_file_is_one_clear_line(bare, tmp_path, content, words):
    file = tmp_path / "tokenizer.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(kvik.InvalidArgumentError, match=words) as caught:
        kvik.load(bare, tokenizer=file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_bytes_that_are_no_text(bare, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(kvik.InvalidArgumentError, match="not UTF-8"):
        kvik.load(bare, tokenizer=file)


def test_missing_file(bare, tmp_path):
    with pytest.raises(kvik.FileError, match="no tokenizer at"):
        kvik.load(bare, tokenizer=tmp_path / "absent.json")
    with pytest.raises(OSError, match="no tokenizer at"):
        kvik.load(bare, tokenizer=tmp_path)


@pytest.mark.parametrize("prompt", ["\ud800", "ab\udcff"])
def test_surrogates_are_no_text(text, prompt):
    for call in (text.generate, text.stream, text.score, text.logits):
        with pytest.raises(kvik.InvalidArgumentError, match=r"surrogate U\+D.* at index [02]"):
            call(prompt)


def test_something_else(bare):
    with pytest.raises(kvik.InvalidArgumentError, match="found int"):
        kvik.load(bare, tokenizer=7)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kvik.tokenizer", "{", "metadata of .*not a tokenizer.*export the model again"),
        ("kvik.eos_token_ids", "7", "JSON list of token ids"),
        ("kvik.eos_token_ids", '["a"]', "JSON list of token ids"),
        ("kvik.eos_token_ids", "[true]", "JSON list of token ids"),
        ("kvik.eos_token_ids", "[" * 5000, "JSON list of token ids"),
        ("kvik.eos_token_ids", "[258]", "names id 258, but the vocabulary has 258"),
        ("kvik.eos_token_ids", "[-1]", "names id -1"),
        ("kvik.generation", "[]", "must be a JSON object"),
        ("kvik.generation", "{", "must be a JSON object"),
        ("kvik.generation", '{"top_k": "many"}', "top_k must be an integer"),
        ("kvik.generation", '{"temperature": true}', "temperature must be a number"),
        ("kvik.generation", '{"temperature": null}', "must not hold null"),
        ("kvik.generation", '{"temperature": -1}', "temperature -1"),
        ("kvik.generation", '{"temperature": NaN}', "temperature nan"),
        ("kvik.generation", '{"top_k": 2.5}', "top_k must be an integer"),
        ("kvik.generation", '{"top_k": -1}', "top_k must be at least 0"),
        ("kvik.generation", '{"top_p": 2}', "top_p 2"),
        ("kvik.generation", '{"min_p": -1}', "min_p -1"),
        ("kvik.generation", '{"repetition_penalty": 0}', "repetition_penalty 0"),
        ("kvik.context_length", "abc", "expected a whole number from 1 on"),
        ("kvik.context_length", "-5", "expected a whole number from 1 on"),
        ("kvik.context_length", "0", "expected a whole number from 1 on"),
        ("kvik.context_length", "9" * 5000, "expected a whole number from 1 on"),
        ("kvik.format", "one", "expected a whole number from 1 on"),
        ("kvik.format", "0", "expected a whole number from 1 on"),
        ("kvik.special_tokens", "[1]", "JSON object of texts and token ids"),
        ("kvik.special_tokens", "{", "JSON object of texts and token ids"),
        ("kvik.special_tokens", '{"<s>": "1"}', "JSON object of texts and token ids"),
        ("kvik.special_tokens", '{"<s>": 258}', "names id 258, but the vocabulary has 258"),
    ],
)
def test_broken_metadata(plain_path, tmp_path, key, value, words):
    model = onnx.load(plain_path)
    helper.set_model_props(model, {key: value})
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(kvik.InvalidModelError, match=words) as caught:
        kvik.load(path)
    assert key in str(caught.value)
    assert str(path) in str(caught.value)


def test_metadata_of_a_newer_version(plain_path, tmp_path):
    model = onnx.load(plain_path)
    helper.set_model_props(model, {"kvik.format": "999"})
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(kvik.UnsupportedError, match=r"m.onnx: .*kvik.format is 999.*too old"):
        kvik.load(path)


def test_a_tokenizer_with_more_ids_than_the_model(bare, tokenizer):
    from tokenizers import Tokenizer

    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_tokens(["one", "two", "three"])
    model = kvik.load(bare, tokenizer=larger)
    with pytest.raises(kvik.InvalidArgumentError, match=r"is 25[89], which is not in the vocab"):
        model.generate("three")
