"""Decay groups and the learning-rate schedule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kvik_train.config import TrainConfig
from kvik_train.models.gpt import GPT, GPTConfig
from kvik_train.optimizer import decay_groups, learning_rate_at, make_optimizer

TINY = GPTConfig(vocab_size=20, context_length=8, n_layer=2, n_head=2, n_embd=8)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = GPT(TINY)
    decayed, plain = decay_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    in_decayed = {names[id(p)] for p in decayed["params"]}
    in_plain = {names[id(p)] for p in plain["params"]}
    assert in_decayed | in_plain == set(names.values())
    assert not in_decayed & in_plain
    assert in_plain == {n for n in names.values() if n.endswith("bias") or "norm" in n}
    # The tied matrix is decayed once.
    assert len(decayed["params"]) == 2 + 2 * 4


def test_decay_is_decoupled_from_the_gradient() -> None:
    """With a zero gradient, AdamW multiplies matrices by 1 - rate * decay and keeps vectors."""
    model = GPT(TINY)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.dim() >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_schedule() -> None:
    config = TrainConfig(steps=111, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1)
    rates = [learning_rate_at(step, config) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)  # half way down
    assert rates[35] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_schedule_at_its_edges() -> None:
    assert learning_rate_at(0, TrainConfig(steps=1, warmup_steps=0, learning_rate=1.0)) == 1.0
    short = TrainConfig(steps=3, warmup_steps=10, learning_rate=1.0)
    assert learning_rate_at(2, short) == pytest.approx(0.3)
    low = TrainConfig(learning_rate=1e-5, min_learning_rate=1e-4, warmup_steps=0)
    assert learning_rate_at(1999, low) == 1e-5  # never above the peak
