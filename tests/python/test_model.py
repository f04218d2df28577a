"""kvik.load and Model: generate, stream, logits, score, info."""

import dataclasses

import numpy as np
import pytest

import kvik

PROMPT = [5, 17, 200, 3, 90]


def test_greedy_is_the_argmax_of_full_recomputation(plain):
    ids = list(PROMPT)
    for _ in range(12):
        ids.append(int(plain.logits(ids, cache=False)[-1].argmax()))
    assert plain.generate(PROMPT, max_new_tokens=12) == ids[len(PROMPT) :]


def test_logits_agree_with_onnxruntime(plain, plain_path):
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(plain_path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input_ids": np.array([PROMPT])})
    found = plain.logits(PROMPT)
    assert found.dtype == np.float32
    assert found.shape == (len(PROMPT), plain.info.vocab_size)
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-4)


def test_logits_are_bitwise_the_same_however_they_are_computed(plain, plain_path):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 257, 40)
    expected = plain.logits(ids)
    for chunk in (1, 5, 39, 40, 64):
        np.testing.assert_array_equal(plain.logits(ids, chunk=chunk), expected)
    np.testing.assert_array_equal(plain.logits(ids, cache=False), expected)
    single = kvik.load(plain_path, threads=1, max_rows=3)
    np.testing.assert_array_equal(single.logits(ids), expected)


def test_ids_may_be_any_integer_array_or_sequence(plain):
    expected = plain.generate(PROMPT, max_new_tokens=6)
    assert isinstance(expected, list)
    assert all(type(token) is int for token in expected)
    for prompt in (
        tuple(PROMPT),
        np.array(PROMPT),
        np.array(PROMPT, dtype=np.uint8),
        np.repeat(PROMPT, 2)[::2],  # not contiguous
        [np.int32(token) for token in PROMPT],
        range(PROMPT[0], PROMPT[0] + 1),
    ):
        found = plain.generate(prompt, max_new_tokens=6)
        assert len(found) == 6
        if list(prompt) == PROMPT:
            assert found == expected


def test_a_batch_gives_what_each_prompt_alone_gives(plain):
    prompts = [PROMPT, [7], np.arange(20), [1, 2]]
    options = {"max_new_tokens": 10, "temperature": 1.1, "top_k": 50, "seed": 3}
    alone = [plain.generate(prompt, **options) for prompt in prompts]
    assert plain.generate(prompts, **options) == alone
    assert plain.generate([PROMPT], **options) == alone[:1]


def test_text_in_text_out(text, tokenizer):
    answer = text.generate("hello", max_new_tokens=8, stop_ids=())
    ids = text.generate(tokenizer.encode("hello").ids, max_new_tokens=8, stop_ids=())
    assert isinstance(answer, str)
    assert answer == tokenizer.decode(ids)
    assert text.generate(["hello", "a"], max_new_tokens=8, stop_ids=())[0] == answer
    assert text.generate(("hello",), max_new_tokens=8, stop_ids=()) == [answer]


@pytest.mark.parametrize("seed", range(6))
def test_stream_joined_is_generate(text, seed):
    """Random weights sample any byte: most of it is not UTF-8, and still the two agree."""
    options = {"max_new_tokens": 50, "temperature": 1.5, "seed": seed, "stop_ids": ()}
    whole = text.generate("naïve €", **options)
    pieces = list(text.stream("naïve €", **options))
    assert "".join(pieces) == whole
    assert all(pieces)
    ids = text.generate(text.tokenizer.encode("naïve €"), **options)
    assert list(text.stream(text.tokenizer.encode("naïve €"), **options)) == ids


def test_stop_string_ends_the_text_before_it(text):
    options = {"max_new_tokens": 40, "temperature": 1.2, "seed": 1, "stop_ids": ()}
    whole = text.generate("a", **options)
    middle = whole[len(whole) // 2]
    cut = whole.index(middle)
    assert text.generate("a", stop=middle, **options) == whole[:cut]
    assert text.generate("a", stop=["never there", middle], **options) == whole[:cut]
    assert "".join(text.stream("a", stop=middle, **options)) == whole[:cut]
    prompt = text.tokenizer.encode("a")
    ids = text.generate(prompt, stop=middle, **options)
    assert text.tokenizer.decode(ids).endswith(middle)
    assert ids == text.generate(prompt, **options)[: len(ids)]


def test_stop_ids_end_before_the_token(plain):
    free = plain.generate(PROMPT, max_new_tokens=10, stop_ids=())
    stop = free[4]
    expected = free[: free.index(stop)]
    assert plain.generate(PROMPT, max_new_tokens=10, stop_ids=[stop]) == expected


def test_stop_ids_come_from_the_metadata(text, plain):
    assert text.stop_ids == (256,)
    assert plain.stop_ids == ()
    forced = {256: 1000.0}
    assert text.generate("a", max_new_tokens=5, logit_bias=forced) == ""
    assert text.generate([1], max_new_tokens=5, logit_bias=forced) == []
    assert text.generate([1], max_new_tokens=2, logit_bias=forced, stop_ids=()) == [256, 256]


def test_seeds(plain):
    options = {"max_new_tokens": 20, "temperature": 1.0}
    first = plain.generate(PROMPT, seed=7, **options)
    assert plain.generate(PROMPT, seed=7, **options) == first
    others = [plain.generate(PROMPT, seed=seed, **options) for seed in range(5)]
    assert any(other != first for other in others)
    unseeded = {tuple(plain.generate(PROMPT, **options)) for _ in range(4)}
    assert len(unseeded) > 1


def test_bias_and_filters(plain):
    first = plain.generate(PROMPT, max_new_tokens=1)
    second = plain.generate(PROMPT, max_new_tokens=1, logit_bias={first[0]: -np.inf})
    assert second != first
    hot = {"max_new_tokens": 8, "temperature": 5.0, "seed": 1}
    greedy = plain.generate(PROMPT, max_new_tokens=8)
    assert plain.generate(PROMPT, top_k=1, **hot) == greedy
    assert plain.generate(PROMPT, top_p=1e-9, **hot) == greedy
    assert plain.generate(PROMPT, min_p=1.0, **hot) == greedy


def test_generation_ends_where_the_context_does(plain):
    context = plain.info.context_length
    assert context == 64
    prompt = list(range(60))
    # The last token that is drawn is not fed back: one more than the context has places left.
    assert len(plain.generate(prompt, max_new_tokens=1000)) == context - len(prompt) + 1
    assert len(plain.generate(list(range(context)), max_new_tokens=9)) == 1


def test_no_new_tokens(plain, text):
    assert plain.generate(PROMPT, max_new_tokens=0) == []
    assert text.generate("a", max_new_tokens=0) == ""
    assert list(text.stream("a", max_new_tokens=0)) == []


def test_leaving_a_stream_half_way_leaves_the_model_usable(plain):
    stream = plain.stream(PROMPT, max_new_tokens=50)
    first = next(stream)
    stream.close()
    assert plain.generate(PROMPT, max_new_tokens=1) == [first]


def test_score_is_the_log_softmax(text, tokenizer):
    sentence = "a naïve test"
    score = text.score(sentence)
    ids = tokenizer.encode(sentence).ids
    assert score.ids == ids
    assert score.tokens == [tokenizer.id_to_token(token) for token in ids]
    logits = text.logits(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = logprobs[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(score.logprobs[1:], expected, rtol=1e-12)
    assert np.isnan(score.logprobs[0])
    assert score.total == pytest.approx(expected.sum())
    assert score.perplexity == pytest.approx(np.exp(-expected.mean()))
    np.testing.assert_array_equal(text.score(ids).logprobs, score.logprobs)


def test_scores_of_all_continuations_sum_to_one(plain):
    total = sum(np.exp(plain.score([9, 4, last]).logprobs[-1]) for last in range(258))
    assert total == pytest.approx(1.0, abs=1e-9)


def test_info(plain, text, plain_path):
    info = plain.info
    assert info.vocab_size == 258
    assert info.incremental
    assert info.threads == 2
    assert [str(item) for item in info.inputs] == ["input_ids: int64 [batch, sequence]"]
    assert [item.name for item in info.outputs] == ["logits"]
    assert info.outputs[0].dtype == "float32"
    assert info.parameters > 0
    assert info.weight_bytes >= 4 * 258 * 16
    assert info.memory_bytes >= info.packed_bytes > 0
    assert info.ops_before["MatMul"] == 13
    assert sum(info.ops_after.values()) < sum(info.ops_before.values())
    assert "kvik.tokenizer" in text.info.metadata
    assert "tokenizer" not in text.info.provenance
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.threads = 3
    assert "258" in repr(plain)
    assert plain.explain()


def test_logits_own_their_memory(plain_path):
    model = kvik.load(plain_path)
    logits = model.logits(PROMPT)
    copy = logits.copy()
    del model
    np.testing.assert_array_equal(logits, copy)
    assert logits.flags.writeable


def test_paths(plain_path, tmp_path):
    odd = tmp_path / "a b é"
    odd.mkdir()
    target = odd / "m.onnx"
    target.write_bytes(plain_path.read_bytes())
    for path in (target, str(target)):
        assert kvik.load(path).info.vocab_size == 258
