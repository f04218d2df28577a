"""Models that must not be run incrementally: refused with a reason, and run all the same."""

from __future__ import annotations

import numpy as np

import kvik
from kvik.bench.ties import is_tie
from parity.selection import Recomputation, assert_logits_close, each_negative, random_ids


@each_negative
def test_is_not_proved_and_the_stop_is_named(case, model_file):
    model = kvik.load(model_file(case))
    explanation = model.explain()
    assert not model.info.incremental, explanation
    assert case.stop in explanation


@each_negative
def test_runs_as_it_stands(case, model_file):
    path = model_file(case)
    batch = np.array([random_ids(seed, case.vocab, 13) for seed in (6, 7, 8)])
    (found,) = kvik.InferenceSession(path).run(["logits"], {"ids": batch})
    assert_logits_close(found, Recomputation(path)(batch))


@each_negative
def test_generates_by_recomputation(case, model_file):
    path = model_file(case)
    prompt = random_ids(9, case.vocab, 6)
    tokens = kvik.load(path).generate(prompt, max_new_tokens=8, stop_ids=())
    run, sequence = Recomputation(path), list(prompt)
    for token in tokens:
        logits = run([sequence])[0, -1]
        assert is_tie(logits.max() - logits[token])
        sequence.append(token)
    assert len(tokens) == 8
