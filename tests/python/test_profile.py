"""Profiles: calls are exact, sums plausible, nothing is recorded unless asked for."""

import time

import numpy as np
import pytest

import kvik
from kvik.bench.machine import Ceilings
from kvik.bench.profile import OpGroup, group_ops
from kvik.profile import OpProfile, Profile


def test_nothing_is_recorded_unless_asked_for(plain):
    plain.generate([1, 2, 3], max_new_tokens=4)
    assert plain.stop_profile() == Profile(0, 0.0, [])


def test_calls_and_sums(plain):
    prompt = [1, 2, 3, 4, 5]
    expected = plain.generate(prompt, max_new_tokens=6)
    start = time.perf_counter()
    plain.start_profile()
    assert plain.generate(prompt, max_new_tokens=6) == expected
    profile = plain.stop_profile()
    elapsed = time.perf_counter() - start
    assert profile.calls == 6  # the prompt, then five tokens
    assert 0 < profile.seconds <= elapsed
    assert 0 <= profile.overhead_seconds < profile.seconds
    attention = [op for op in profile.ops if op.op == "kvik.RowAttention"]
    assert [op.calls for op in attention] == [6, 6]
    assert attention[0].shape == "2 heads x 8"
    assert attention[0].bytes == sum(range(5, 11)) * 2 * 16 * 4
    head = next(op for op in profile.ops if op.shape == "16 x 258")
    assert head.operations == 6 * 2 * 16 * 258
    assert plain.stop_profile().ops == []


def test_a_session(session_path):
    session = kvik.InferenceSession(session_path)
    feed = {"x": np.ones((4, 3), np.float32)}
    session.run(None, feed)
    assert session.stop_profile().ops == []
    session.start_profile()
    for _ in range(3):
        session.run(None, feed)
    profile = session.stop_profile()
    assert profile.calls == 3
    product = next(op for op in profile.ops if op.operations)
    assert product.calls == 3
    assert product.operations == 3 * 2 * 4 * 3 * 2


def op(name, seconds, calls=1, shape="8 x 8"):
    return OpProfile("Linear", name, shape, "int8", calls, seconds, 100.0 * calls, 200.0 * calls)


def test_alike_nodes_are_one_group():
    rounds = [
        Profile(2, 1.0, [op("a", 0.25), op("b", 0.25), op("c", 0.3, shape="8 x 16")]),
        Profile(2, 1.0, [op("a", 0.1), op("b", 0.1), op("c", 0.1, shape="8 x 16")]),
    ]
    groups = group_ops(rounds)
    assert [group.shape for group in groups] == ["8 x 8", "8 x 16"]
    assert groups[0].nodes == 2
    assert groups[0].calls == 4
    assert groups[0].seconds == pytest.approx(0.7)
    assert groups[0].bytes == 400
    assert rounds[0].overhead_seconds == pytest.approx(0.2)


def test_the_nearer_ceiling_counts():
    ceilings = Ceilings(100.0, {"f32": 10.0, "int8": 40.0})
    memory = OpGroup("Linear", "", "int8", 1, 1, 9.0, bytes=300.0, operations=40.0)
    assert memory.least_seconds(ceilings) == 3.0
    arithmetic = OpGroup("Linear", "", "int8", 1, 1, 9.0, bytes=100.0, operations=80.0)
    assert arithmetic.least_seconds(ceilings) == 2.0
    assert OpGroup("Add", "", "", 1, 1, 9.0, 0.0, 0.0).least_seconds(ceilings) == 0.0
