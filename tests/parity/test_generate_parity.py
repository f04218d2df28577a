"""kvik, incrementally, against onnxruntime that recomputes everything, for every positive model."""

from __future__ import annotations

import numpy as np
import pytest

import kvik
from kvik.bench.ties import is_tie
from parity.selection import (
    Recomputation,
    assert_logits_close,
    each_positive,
    random_ids,
    takes_batches,
)

STEPS = 48


@each_positive
def test_is_proved_incremental(case, model_file):
    model = kvik.load(model_file(case))
    # A case that is listed as unproved and is proved now leaves the list.
    assert model.info.incremental == case.proved, model.explain()


@each_positive
@pytest.mark.parametrize("prompt_length", [1, 11])
def test_greedy_tokens_are_those_of_full_recomputation(case, model_file, prompt_length):
    path = model_file(case)
    prompt = random_ids(prompt_length, case.vocab, prompt_length)
    tokens = kvik.load(path).generate(prompt, max_new_tokens=STEPS, stop_ids=())
    assert len(tokens) == STEPS
    run, sequence = Recomputation(path), list(prompt)
    for step, token in enumerate(tokens):
        logits = run([sequence])[0, -1]
        best = int(np.argmax(logits))
        if token != best:
            gap = float(logits[best] - logits[token])
            assert is_tie(gap), f"step {step}: {token} instead of {best}, {gap:.3g} below it"
        sequence.append(token)


@each_positive
def test_logits_of_every_prefix(case, model_file):
    path = model_file(case)
    model, run = kvik.load(path), Recomputation(path)
    ids = random_ids(5, case.vocab, 40)
    expected = run.prefixes(ids)
    assert_logits_close(model.logits(ids), expected, context="prompt at once")
    assert_logits_close(model.logits(ids, chunk=1), expected, context="token by token")
    assert_logits_close(model.logits(ids, cache=False), expected, context="without the cache")


@each_positive
def test_the_graph_as_it_stands(case, model_file):
    path = model_file(case)
    seeds = (6, 7, 8) if takes_batches(path) else (6,)
    batch = np.array([random_ids(seed, case.vocab, 13) for seed in seeds])
    expected = Recomputation(path)(batch)
    for optimize in (True, False):
        session = kvik.InferenceSession(path, optimize=optimize)
        (found,) = session.run(["logits"], {"ids": batch})
        assert_logits_close(found, expected, context=f"optimize={optimize}")
