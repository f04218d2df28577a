"""Masks in BERT's proportions, smoothed labels, schedules, n-grams, spans."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvik_train.config import TrainConfig
from kvik_train.data.framing import ENCODER, IGNORED, FrameIds, with_frame
from kvik_train.data.sampler import example_indices, noise
from kvik_train.data.table import Ragged
from kvik_train.distributed import World
from kvik_train.evaluation.ngram import NGram
from kvik_train.models.transformer import sinusoids
from kvik_train.optimizer import learning_rate_at
from kvik_train.presets import RECIPES
from kvik_train.tasks.answer import best_spans, span_f1
from kvik_train.tasks.mlm import CHOSEN, MaskedTokens
from kvik_train.tasks.tag import mean_f1
from kvik_train.tasks.translate import Translation
from kvik_train.tokenizer import BERT_TOKENS, encode, train_tokenizer

from .runs import make_config

WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> MaskedTokens:
    config = make_config("bert", "mlm", tmp_path_factory.mktemp("mlm"))
    config = replace(config, train=replace(config.train, batch_size=64))
    lines = Ragged.of([list(range(5 + 7 * i % 180, 5 + 7 * i % 180 + 9)) for i in range(200)])
    table = {"line": lines, "document": np.arange(200) // 20}
    tables = {"train": table, "validation": table}
    return MaskedTokens(tables, config, FrameIds([2], [3], 0), WORLD)


def test_fifteen_percent_are_chosen_and_changed_80_10_10(masked: MaskedTokens) -> None:
    """Binomial proportions within five standard errors."""
    kinds: Counter[str] = Counter()
    wanted_count = following = pairs = 0
    for step in range(25):
        batch = masked.batch(step, 0)
        ids, mask, segments, places = batch.inputs
        expected, is_random = batch.targets
        lengths = mask.sum(1) - 3  # without [CLS] and two [SEP]
        wanted_count += sum(round(CHOSEN * int(length)) for length in lengths)
        following += int(is_random.sum())
        pairs += len(ids)
        assert torch.equal(ids[:, 0], torch.full((64,), 2))
        assert bool((segments[mask == 0] == 0).all())
        now = ids.gather(1, places)
        for found, wanted in zip(now.flatten().tolist(), expected.flatten().tolist(), strict=True):
            if wanted != IGNORED:
                assert wanted >= 5  # special tokens are never predicted
                kinds["mask" if found == 4 else "same" if found == wanted else "random"] += 1
    total = kinds.total()
    assert CHOSEN == 0.15
    assert total == wanted_count
    for kind, share in (("mask", 0.8), ("random", 0.1), ("same", 0.1)):
        error = 5 * math.sqrt(share * (1 - share) / total)
        assert kinds[kind] / total == pytest.approx(share, abs=error + 0.002), kind
    # A little over half: a pair at the end of a document has nothing that follows.
    assert 0.45 < following / pairs < 0.65


def test_validation_masks_stay_the_same(masked: MaskedTokens) -> None:
    first, second = masked.validation_batch([3, 9]), masked.validation_batch([3, 9])
    assert all(torch.equal(a, b) for a, b in zip(first.inputs, second.inputs, strict=True))


def test_label_smoothing_is_the_papers() -> None:
    """(1 - e) of the target's cross-entropy and e of the mean over all labels; torch has it."""
    config = TrainConfig(batch_size=3, label_smoothing=0.1)
    table = {"source": Ragged.of([[5, 2], [6, 7, 2], [8, 2]]),
             "target": Ragged.of([[5], [6, 7, 9], [8, 4]])}  # fmt: skip
    objective = Translation({"train": table, "validation": table}, config, WORLD)
    batch = objective.validation_batch([0, 1, 2])
    logits = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(1))

    class Fixed(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return logits

    model = Fixed()
    (targets,) = batch.targets
    log_p = logits.log_softmax(2)
    chosen = targets != IGNORED
    picked = -log_p[chosen].gather(1, targets[chosen][:, None]).mean()
    spread = -log_p[chosen].mean()
    torch.testing.assert_close(objective.loss(model.eval(), batch), picked)
    expected = 0.9 * picked + 0.1 * spread
    torch.testing.assert_close(objective.loss(model.train(), batch), expected)
    assert objective.weight(batch, 3) == 9  # tokens, with the ends
    source, mask, target = batch.inputs
    assert target.tolist() == [[1, 5, 0, 0], [1, 6, 7, 9], [1, 8, 4, 0]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]
    assert targets.tolist() == [[5, 2, -100, -100], [6, 7, 9, 2], [8, 4, 2, -100]]
    assert source[1].tolist() == [6, 7, 2]


@pytest.mark.parametrize(("preset", "channels"), [("transformer-base", 512),
                                                  ("transformer-big", 1024)])  # fmt: skip
def test_the_schedule_is_the_papers_formula(preset: str, channels: int) -> None:
    config = RECIPES[preset].train
    for step in (1, 2, 100, 3999, 4000, 4001, 50_000, 100_000):
        formula = channels**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert learning_rate_at(step - 1, config) == pytest.approx(formula, rel=1e-12)


def test_the_linear_schedule_ends_at_its_minimum() -> None:
    config = TrainConfig(
        steps=111, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.0, schedule="linear"
    )
    rates = [learning_rate_at(step, config) for step in range(111)]
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == 0.0


def test_sinusoids_are_the_papers() -> None:
    table = sinusoids(50, 16)
    for position, i in ((0, 0), (7, 3), (49, 7)):
        angle = position / 10000 ** (2 * i / 16)
        assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@given(st.lists(st.integers(0, 4), min_size=12, max_size=60), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_ngram_probabilities_sum_to_one(text: list[int], order: int) -> None:
    model = NGram(np.array(text), 5, order)
    history = text[:2]
    windows = np.array([[*history, last] for last in range(5)])
    assert model.probabilities(windows)[:, -1].sum() == pytest.approx(1.0)


def test_ngram_by_hand() -> None:
    """Witten-Bell on "a b a b a c": p(b | a) = (2 + 2 * p(b)) / (3 + 2)."""
    text = np.array([0, 1, 0, 1, 0, 2])
    p_b = (2 + 3 * (1 / 3)) / (6 + 3)
    found = NGram(text, 3, 2).probabilities(np.array([[0, 1]]))[0, 0]
    assert found == pytest.approx((2 + 2 * p_b) / 5)
    assert NGram(text, 3, 2).loss(np.array([[0, 1]])) == pytest.approx(-math.log(found))


def test_spans() -> None:
    start = torch.tensor([[0.0, 5.0, 1.0, 4.0]])
    end = torch.tensor([[9.0, 0.0, 2.0, 1.0]])
    every = torch.ones(1, 4, dtype=torch.bool)
    assert best_spans(start, end, every) == [(0, 0)]  # the end is never before the start
    context = torch.tensor([[False, True, True, True]])
    assert best_spans(start, end, context) == [(1, 2)]
    assert span_f1((1, 2), (2, 3)) == 0.5
    assert span_f1((1, 1), (3, 3)) == 0.0
    assert mean_f1([0, 0, 1], [0, 1, 1], 3) == pytest.approx(2 / 3)


def test_epochs_are_permutations() -> None:
    seen = [i for step in range(15) for i in example_indices(1, step, 4, 20)]
    epochs = [seen[i : i + 20] for i in range(0, 60, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert 0.45 < noise(3, 7, 10_000).mean() < 0.55
    assert noise(3, 7, 4).tolist() == noise(3, 7, 10)[:4].tolist()


def test_framed_ids_are_what_the_post_processor_makes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("wordpiece", ["one two three four"] * 5, 60, BERT_TOKENS)
    with_frame(tokenizer, ENCODER)
    frame = ENCODER.ids(tokenizer)
    first, second = (next(encode(tokenizer, [text])) for text in ("one two", "three four one"))
    assert frame.single(first, 99) == tokenizer.encode("one two").ids
    pair = tokenizer.encode("one two", "three four one")
    assert frame.pair(first, second, 99) == pair.ids
    begin = frame.second_start(first, second, 99)
    assert pair.type_ids == [0] * begin + [1] * (len(pair.ids) - begin)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(8, 40))
def test_pairs_are_cut_to_the_limit(one: int, two: int, limit: int) -> None:
    frame = FrameIds([2], [3], 0)
    first, second = [7] * one, [8] * two
    ids = frame.pair(first, second, limit)
    assert len(ids) == min(limit, one + two + 3)
    begin = frame.second_start(first, second, limit)
    assert ids[begin - 1] == 3
    assert set(ids[begin:-1]) <= {8}
    assert 7 in ids
    assert ids[-1] == 3
