"""Models that must not be run incrementally: refused with a reason, and run all the same."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from onnx import TensorProtocol, helper, numpy_helper

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


# One matrix [1, width] of 4 MiB stands for the weights of queries, keys and values.
LOAD = """
import resource, sys, kvik
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = kvik.load(sys.argv[1], threads=1)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert not model.info.incremental
assert any("times the model's weights" in line for line in model.explain()), model.explain()
print((after - before) * 1024)
"""


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    width = 1 << 20
    constants = {
        "table": np.zeros((16, 1), np.float32),
        "w": np.zeros((1, width), np.float32),
        "out": np.zeros((width, 1), np.float32),
    }
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"])]
    nodes += [helper.make_node("MatMul", ["x", "w"], [name]) for name in "qkv"]
    nodes += [
        helper.make_node(
            "Attention", list("qkv"), ["a"], is_causal=1, q_num_heads=1, kv_num_heads=1
        ),
        helper.make_node("MatMul", ["a", "out"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("ids", TensorProtocol.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProtocol.FLOAT, ["b", "s", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 23)]
    path = tmp_path / "wide.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    )
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * path.stat().st_size + (256 << 20)
