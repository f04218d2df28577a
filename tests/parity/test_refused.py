"""Models that must not be run incrementally: refused with a reason, and run all the same."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

import kvik
from kvik.bench.ties import is_tie
from parity.selection import Recomputation, assert_logits_close, each_negative, random_ids
from parity.zoo.graph_builder import GraphBuilder


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


LOAD = """
import resource, sys, kvik
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = kvik.load(sys.argv[1], threads=1)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert not model.info.incremental
assert "times the model's weights" in model.explain(), model.explain()
print((after - before) * 1024)
"""


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    """One matrix [1, width] of 4 MiB is the weights of queries, keys and values. The other, of one
    column, is packed into a panel of 64."""
    width = 1 << 20
    graph = GraphBuilder(seed=0)
    x = graph.node("Gather", graph.weight(16, 1), "ids")
    w = graph.constant(np.zeros((1, width)))
    q, k, v = (graph.node("MatMul", x, w) for _ in range(3))
    heads = graph.node("Attention", q, k, v, is_causal=1, q_num_heads=1, kv_num_heads=1)
    path = tmp_path / "wide.onnx"
    logits = graph.node("MatMul", heads, graph.constant(np.zeros((width, 1))))
    graph.save(path, output=logits, vocab=1, opset=23)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 512 << 20
