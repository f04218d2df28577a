"""The zoo is what it says: onnxruntime alone shows which models may be run incrementally.

A row of a positive model must not change when later tokens or other sequences of the batch do; in
each negative model some row does.
"""

from __future__ import annotations

import numpy as np
import onnx

from parity.selection import Recomputation, each_negative, each_positive, random_ids, takes_batches

LENGTH, CUT = 20, 12


def largest_influence(case, path) -> float:
    """How much rows 0 .. CUT - 1 of the first sequence change with what they must not depend on.

    That is later tokens, the length, the other sequence; relative to the largest logit.
    """
    run = Recomputation(path)
    ids, neighbour = random_ids(1, case.vocab, LENGTH), random_ids(2, case.vocab, LENGTH)
    later = [*ids[:CUT], *random_ids(3, case.vocab, LENGTH - CUT)]
    base = run([ids])[0, :CUT]
    variants = [run([later])[0, :CUT], run([ids[:CUT]])[0]]
    if takes_batches(path):
        other = random_ids(4, case.vocab, LENGTH)
        variants += [run([ids, neighbour])[0, :CUT], run([ids, other])[0, :CUT]]
    scale = max(1.0, float(np.abs(base).max()))
    return max(float(np.abs(variant - base).max()) for variant in variants) / scale


@each_positive
def test_rows_of_a_positive_model_depend_on_their_prefix_alone(case, model_file):
    assert largest_influence(case, model_file(case)) < 1e-5


@each_negative
def test_rows_of_a_negative_model_depend_on_more(case, model_file):
    # Far above rounding: an engine that took the model for incremental would be found out.
    assert largest_influence(case, model_file(case)) > 1e-3


@each_positive
def test_positive_models_attend_to_their_past(case, model_file):
    """Else a cache that is never read would pass every other test."""
    run = Recomputation(model_file(case))
    ids = random_ids(1, case.vocab, LENGTH)
    changed = [(ids[0] + 1) % case.vocab, *ids[1:]]
    first, second = run([ids])[0, 4], run([changed])[0, 4]
    assert np.abs(first - second).max() > 1e-3


@each_positive
def test_files_are_plain_forwards(case, model_file):
    graph = onnx.load(model_file(case)).graph
    assert [value.name for value in graph.input] == ["ids"]
    assert [value.name for value in graph.output] == ["logits"]
