"""What the benchmark concludes from its samples, without a clock."""

import numpy as np
import pytest

from kvik import _core
from kvik.bench.machine import Roofline
from kvik.bench.measure import _parity
from kvik.bench.report import _ratio, _spread
from kvik.bench.ties import CLOSE_LOGITS, is_tie
from kvik.errors import InvalidArgumentError


class Peer:
    """A peer whose logits after any prompt are these."""

    name = "peer"

    def __init__(self, logits):
        self.logits = np.asarray(logits, dtype=np.float32)

    def prefill(self, prompt):
        return np.tile(self.logits, (len(prompt), 1))


PROMPT = np.array([0, 1])


def test_the_same_tokens_are_the_same():
    parity = _parity(Peer([0, 1]), PROMPT, [1, 1], [1, 1], 0.0)
    assert parity.same
    assert parity.first_difference is None


def test_a_wrong_token_is_wrong():
    parity = _parity(Peer([0.0, 1.0]), PROMPT, [1, 0, 1], [1, 1, 1], 0.0)
    assert not parity.same
    assert parity.first_difference == 1
    assert parity.margin == pytest.approx(1.0)


def test_a_tie_is_no_mistake():
    close = _parity(Peer([0.0, CLOSE_LOGITS / 2]), PROMPT, [0], [1], 0.0)
    assert close.same
    assert close.first_difference == 0


def test_what_a_tie_is():
    assert is_tie(0.0)
    assert not is_tie(CLOSE_LOGITS)
    assert not is_tie(float("nan"))


def test_ratios_say_who_is_faster():
    assert _ratio([10.0], [5.0], larger_is_better=True) == "2.00× faster"
    assert _ratio([10.0], [5.0], larger_is_better=False) == "2.00× slower"
    assert _spread([3.0, 1.0, 2.0], 1) == "1.0 / 2.0 / 3.0"


def test_the_highest_ceilings_of_a_run_count():
    slow_memory = Roofline(40e9, 900e9, bytes_per_token=1e8, flops_per_token=2e8)
    slow_cores = Roofline(80e9, 450e9, bytes_per_token=1e8, flops_per_token=2e8)
    for best in (slow_memory.best(slow_cores), slow_cores.best(slow_memory)):
        assert best.decode_tokens_per_second == pytest.approx(800)
        assert best.prefill_tokens_per_second == pytest.approx(4500)


def test_machine_ceilings():
    assert _core.active_isa() in _core.available_isas()
    assert "reference" in _core.available_isas()
    for isa in _core.available_isas():
        assert _core.fma_peak(isa, 1, 0.01) > 1e8
        assert _core.bf16_peak(isa, 1, 0.01) > 1e8
        assert _core.dot_peak(isa, 1, 0.01) > 1e7
    assert _core.read_bandwidth(1, 1, 0.01) > 1e7
    assert _core.read_bandwidth(1 << 20, 2, 0.01) > 1e8


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: _core.fma_peak("avx9000", 1), "this CPU has reference"),
        (lambda: _core.fma_peak("reference", 0), "threads"),
        (lambda: _core.bf16_peak("avx9000", 1), "this CPU has reference"),
        (lambda: _core.bf16_peak("reference", 0), "threads"),
        (lambda: _core.fma_peak("reference", 1, -1.0), "seconds"),
        (lambda: _core.read_bandwidth(0, 1), "bytes"),
        (lambda: _core.read_bandwidth(1, 1, float("nan")), "seconds"),
    ],
)
def test_impossible_measurements(call, words):
    with pytest.raises(InvalidArgumentError, match=words):
        call()
