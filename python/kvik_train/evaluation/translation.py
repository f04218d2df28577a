"""Greedy translation with a plain forward, and how good translations are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kvik_train.errors import TrainError


@torch.no_grad()
def greedy_translations(
    model: nn.Module, source_ids: Tensor, source_mask: Tensor, *, start: int, end: int, limit: int
) -> list[list[int]]:
    """The most probable token at every step, until `end`: ids without `start` and `end`.

    source_ids and source_mask are [B, S]. The encoder runs once, the decoder over all it has so
    far at every step: this is for checking, not for speed.
    """
    translator: Any = model
    memory = translator.encode(source_ids, source_mask)
    target = torch.full((len(source_ids), 1), start, device=source_ids.device)
    finished = torch.zeros(len(source_ids), dtype=torch.bool, device=source_ids.device)
    for _ in range(limit):
        logits = translator.decode(memory, source_mask, target)[:, -1]
        chosen = logits.argmax(dim=1)
        target = torch.cat((target, chosen[:, None]), dim=1)
        finished |= chosen == end
        if bool(finished.all()):
            break
    rows: list[list[int]] = target[:, 1:].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def exact_match(found: Sequence[str], expected: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(found, expected, strict=True)) / max(1, len(expected))


def bleu(found: Sequence[str], expected: Sequence[str], *, characters: bool) -> float:
    """Corpus BLEU by sacrebleu, 0 to 100; of characters where sentences are a word or two."""
    try:
        from sacrebleu import corpus_bleu
    except ModuleNotFoundError as error:
        raise TrainError(
            "BLEU needs sacrebleu, which is not installed: pip install 'kvik[train]'"
        ) from error
    tokenize = "char" if characters else "13a"
    return float(corpus_bleu(list(found), [list(expected)], tokenize=tokenize).score)
