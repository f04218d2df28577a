"""Padding changes nothing; what may not be seen is not seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvik_train.models import build_model

from .runs import MODELS


def tiny(family: str, task: str | None = None) -> Any:
    torch.manual_seed(2)
    return build_model(MODELS[family], task, ("a", "b", "c")).eval()


def text(rows: int, length: int, vocab: int = 150) -> torch.Tensor:
    return torch.randint(5, vocab, (rows, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "mlm"), ("bert", "classify"), ("bert", "tag"), ("bert", "answer"),
     ("gpt", "classify")],
)  # fmt: skip
@pytest.mark.parametrize("fill", [0, 7])
def test_padding_changes_no_result(family: str, task: str, fill: int) -> None:
    model, ids = tiny(family, task), text(2, 9)
    mask, segments = torch.ones_like(ids), (torch.arange(9) > 4).long().expand(2, -1)
    inputs = (ids, mask, segments)[: 3 if family == "bert" else 2]
    wide = [
        torch.nn.functional.pad(item, (0, 6), value=fill if number == 0 else 0)
        for number, item in enumerate(inputs)
    ]
    short, long = model(*inputs), model(*wide)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (short, long)), strict=True):
        b = b[:, :9] if b.dim() == 3 or task == "answer" else b
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["transformer", "seq2seq"])
def test_translation_ignores_padding_and_the_future(family: str) -> None:
    model = tiny(family)
    source, target = text(2, 7), text(2, 8)
    mask = torch.ones_like(source)
    expected = model(source, mask, target)
    expected = expected if isinstance(expected, tuple) else (expected,)
    wide = torch.nn.functional.pad(source, (0, 5), value=9)
    found = model(wide, torch.nn.functional.pad(mask, (0, 5)), target)
    found = found if isinstance(found, tuple) else (found,)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    if family == "seq2seq":
        alignments = found[1]
        assert alignments.shape == (2, 8, 12)
        assert torch.equal(alignments[:, :, 7:], torch.zeros(2, 8, 5))
        torch.testing.assert_close(alignments.sum(2), torch.ones(2, 8))
        torch.testing.assert_close(alignments[:, :, :7], expected[1], rtol=1e-5, atol=1e-6)
    for position in range(8):
        changed = target.clone()
        changed[:, position] += 1
        after = model(source, mask, changed)
        after = after[0] if isinstance(after, tuple) else after
        torch.testing.assert_close(
            after[:, :position], expected[0][:, :position], rtol=0, atol=1e-6
        )
        assert (after[:, position] - expected[0][:, position]).abs().max() > 1e-5
    other = source.clone()
    other[:, 0] += 1
    again = model(other, mask, target)
    again = again[0] if isinstance(again, tuple) else again
    assert (again - expected[0]).abs().max() > 1e-5  # the source matters


@pytest.mark.parametrize("family", ["rnn", "lstm", "gru"])
def test_recurrent_models_are_causal_and_carry_their_state(family: str) -> None:
    model, ids = tiny(family), text(2, 10)
    whole = model(ids)
    changed = ids.clone()
    changed[:, 6] += 1
    torch.testing.assert_close(model(changed)[:, :6], whole[:, :6])
    assert (model(changed)[:, 6] - whole[:, 6]).abs().max() > 1e-5
    first, state = model(ids[:, :4], model.zero_state(2))
    second, _ = model(ids[:, 4:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-5, atol=1e-6)


def test_bert_sees_both_sides_and_segments() -> None:
    model, ids = tiny("bert"), text(1, 8)
    mask, segments = torch.ones_like(ids), torch.zeros_like(ids)
    before = model(ids, mask, segments)
    changed = ids.clone()
    changed[:, 7] += 1
    assert (model(changed, mask, segments)[:, 0] - before[:, 0]).abs().max() > 1e-6
    assert (model(ids, mask, segments + 1) - before).abs().max() > 1e-6


def test_the_auxiliary_logits_are_those_of_the_language_model() -> None:
    model, ids = tiny("gpt", "classify"), text(2, 6)
    labels, tokens = model(ids, torch.ones_like(ids), next_token=True)
    torch.testing.assert_close(tokens, model.backbone(ids))
    torch.testing.assert_close(labels, model(ids, torch.ones_like(ids)))
