"""Impossible arguments: one clear line, a ValueError, and the model still works."""

import numpy as np
import pytest

import kvik
from kvik import _core

BAD_PROMPTS = [
    ([], "empty"),
    ((), "empty"),
    (np.array([], dtype=np.int64), "empty"),
    ([[1], []], r"prompt\[1\] is empty"),
    ([258], "258, which is not in the vocabulary: ids are 0 to 257"),
    ([3, -1], r"prompt\[1\] is -1"),
    ([2**70], "not in the vocabulary"),
    ([1.0], "found float 1.0"),
    ([True], "found bool True"),
    ([1, "a"], "found str 'a'"),
    ([[1], 2], r"prompt\[1\] must be token ids"),
    (np.zeros((1, 2), dtype=np.int64), "one dimension"),
    (np.zeros(3), "must hold integers; found dtype float64"),
    (np.array(3), "one dimension"),
    (7, "found int 7"),
    (None, "found NoneType"),
    (b"abc", "found bytes"),
    ({1: 2}, "found dict"),
]


@pytest.mark.parametrize(("prompt", "words"), BAD_PROMPTS)
def test_bad_prompts(plain, prompt, words):
    with pytest.raises(kvik.InvalidArgumentError, match=words) as caught:
        plain.generate(prompt, max_new_tokens=2)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    assert len(plain.generate([1], max_new_tokens=2)) == 2


def test_bad_text_prompts(text):
    with pytest.raises(kvik.InvalidArgumentError, match="prompt is empty"):
        text.generate("")
    with pytest.raises(kvik.InvalidArgumentError, match=r"prompt\[1\] must be text"):
        text.generate(["a", 1])
    with pytest.raises(kvik.InvalidArgumentError, match="one prompt"):
        text.stream(["a", "b"])
    with pytest.raises(kvik.InvalidArgumentError, match="found several"):
        text.logits(["a", "b"])
    with pytest.raises(kvik.InvalidArgumentError, match="at least two tokens"):
        text.score("a")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0; found -1"),
        ({"max_new_tokens": 1.5}, "must be an integer; found float"),
        ({"max_new_tokens": None}, "must be an integer; found NoneType"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature is larger than any float64"),
        ({"temperature": "hot"}, "temperature must be a number; found str 'hot'"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_k": 2.5}, "top_k must be an integer"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"logit_bias": {258: 1.0}}, "258"),
        ({"logit_bias": {-1: 1.0}}, "-1"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias|nan"),
        ({"logit_bias": [1]}, "must map token ids to numbers"),
        ({"logit_bias": {1: "x"}}, r"logit_bias\[1\] must be a number"),
        ({"stop": ""}, "empty string"),
        ({"stop": [1]}, "stop must be a string"),
        ({"stop": 5}, "stop must be a string or a list of strings; found int"),
        ({"stop": b"a"}, "stop must be a string or a list of strings; found bytes"),
        ({"stop_ids": [258]}, "258"),
        ({"stop_ids": [-2]}, "-2"),
        ({"stop_ids": "a"}, "stop_ids must be token ids"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**64}, "seed must be at most 18446744073709551615"),
        ({"seed": 1.0}, "seed must be an integer"),
    ],
)
def test_bad_options(text, options, words):
    for call in (text.generate, text.stream):  # a stream checks before its first piece
        with pytest.raises(kvik.InvalidArgumentError, match=words):
            call("a", **options)


def test_unknown_option_is_a_type_error(text):
    with pytest.raises(TypeError, match="temprature"):
        text.generate("a", temprature=1)


def test_prompt_longer_than_the_context(plain):
    for call in (plain.generate, plain.logits, plain.score):
        with pytest.raises(kvik.InvalidArgumentError, match=r"66 tokens.* 64"):
            call([1] * 66)
    with pytest.raises(kvik.InvalidArgumentError, match="request 1"):
        plain.generate([[1], [1] * 65])


def test_largest_seed(plain):
    options = {"max_new_tokens": 3, "temperature": 1.0, "seed": 2**64 - 1}
    assert plain.generate([1], **options) == plain.generate([1], **options)


def test_bad_load_arguments(plain_path, tmp_path):
    for threads in (0, -1, 1.0, "2", True):
        with pytest.raises(kvik.InvalidArgumentError, match="threads"):
            kvik.load(plain_path, threads=threads)
    for rows in (0, 65537):
        with pytest.raises(kvik.InvalidArgumentError, match="max_rows"):
            kvik.load(plain_path, max_rows=rows)
    with pytest.raises(kvik.InvalidArgumentError, match="path must be str"):
        kvik.load(3)
    for call in (kvik.load, kvik.InferenceSession):
        with pytest.raises(kvik.InvalidArgumentError, match="path holds a NUL character"):
            call("a\0b")
    with pytest.raises(kvik.InvalidArgumentError, match="path holds a NUL character"):
        kvik.load(plain_path, tokenizer="a\0b")
    with pytest.raises(kvik.FileError, match="absent"):
        kvik.load(tmp_path / "absent.onnx")
    with pytest.raises(OSError, match="absent"):
        kvik.load(tmp_path / "absent.onnx")
    with pytest.raises(kvik.KvikError, match=tmp_path.name):
        kvik.load(tmp_path)


def test_most_threads_is_what_the_engine_takes(plain_path):
    with pytest.raises(kvik.InvalidArgumentError, match="threads must be at most 1024; found 1025"):
        kvik.load(plain_path, threads=1025)
    with pytest.raises(kvik.InvalidArgumentError, match="1024"):
        _core.Model.load(plain_path, threads=1025)


def test_bytes_that_are_no_model(tmp_path):
    path = tmp_path / "no.onnx"
    for content in (b"", b"GGUF\x03\0\0\0", b"PK\x03\x04", b'{"a": 1}', b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(kvik.InvalidModelError) as caught:
            kvik.load(path)
        assert "\n" not in str(caught.value)


def test_bad_chunk(plain):
    for chunk in (0, -3, 1.5):
        for cache in (True, False):
            with pytest.raises(kvik.InvalidArgumentError, match="chunk"):
                plain.logits([1, 2], cache=cache, chunk=chunk)


def test_a_sampler_refuses_what_is_not_a_number():
    sampler = _core.Sampler(_core.SamplerOptions(), 3)
    with pytest.raises(kvik.InvalidArgumentError):
        sampler.sample(np.array([0.0, np.nan, 1.0], dtype=np.float32))
    assert sampler.steps == 0
    assert sampler.sample(np.array([0.0, 2.0, 1.0], dtype=np.float32)) == 1
    assert sampler.steps == 1
