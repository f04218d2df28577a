"""The rules by which logits and tokens count as equal."""

from __future__ import annotations

import numpy as np

from kvik_export.compare import compare_greedy, difference, scaled_error

INF, NAN = float("inf"), float("nan")


def test_error_is_absolute_up_to_one_and_relative_beyond():
    reference = np.array([[0.5, -0.25], [100.0, 1.0]], dtype=np.float32)
    errors = scaled_error(reference + np.float32(0.125), reference)
    np.testing.assert_allclose(errors, [[0.125, 0.125], [0.00125, 0.00125]])


def test_special_values():
    reference = np.array([INF, -INF, NAN, 1.0, 1.0])
    np.testing.assert_array_equal(
        scaled_error(np.array([INF, INF, NAN, INF, NAN]), reference), [0, INF, 0, INF, INF]
    )


def test_difference_finds_the_place():
    reference = np.zeros((3, 4), dtype=np.float32)
    found = reference.copy()
    found[2, 1] = 2e-4
    worst = difference(found, reference)
    assert (worst.row, worst.token, worst.ok) == (2, 1, False)
    found[2, 1] = 0.5e-4
    assert difference(found, reference).ok
    assert not difference(found[:2], reference).ok, "another shape is no match"


def counting_engine(gap: float):
    """Prefers the last id + 1; one id more is `gap` behind."""

    def run(ids):
        logits = np.zeros((len(ids), 10), dtype=np.float32)
        for row, token in enumerate(ids):
            logits[row, (token + 1) % 10] = 5.0
            logits[row, (token + 2) % 10] = 5.0 - gap
        return logits

    return run


def test_greedy_tokens():
    for rows_are_prefixes in (True, False):

        def compare(tokens, gap, how=rows_are_prefixes):
            return compare_greedy(tokens, [1, 2], counting_engine(gap), rows_are_prefixes=how)

        assert compare([3, 4, 5], 1.0).ok
        assert compare([], 1.0).ok
        wrong = compare([3, 5, 6], 1.0)
        assert (wrong.ok, wrong.mismatch, wrong.gap) == (False, 1, 1.0)
        tie = compare([3, 5, 6], 1e-4)
        assert (tie.ok, tie.ties) == (True, 1)
