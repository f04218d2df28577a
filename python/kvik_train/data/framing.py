"""The special tokens around a text, and rows of unequal length as one batch.

What is done here to ids is what the tokenizer's post-processor does to a text (`with_frame`), so
that a file's tokenizer.json alone gives a program the inputs that the model was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor

from kvik_train.errors import TrainError

Ids = Sequence[int] | npt.NDArray[Any]
IGNORED = -100  # the target of a place at which nothing is predicted; torch's own default


@dataclass(frozen=True)
class Frame:
    """`before` text `after`, and for a pair: `before` first `after` second `after`."""

    before: str | None
    after: str
    pad: str

    def ids(self, tokenizer: Tokenizer) -> FrameIds:
        """The frame's ids; a TrainError where the tokenizer lacks one of its tokens."""
        found = {}
        for token in filter(None, (self.before, self.after, self.pad)):
            index = tokenizer.token_to_id(token)
            if index is None:
                raise TrainError(
                    f"the tokenizer has no token {token}; this task needs one that was trained "
                    "with it"
                )
            found[token] = index
        before = [] if self.before is None else [found[self.before]]
        return FrameIds(before, [found[self.after]], found[self.pad])


@dataclass(frozen=True)
class FrameIds:
    before: list[int]
    after: list[int]
    pad: int

    def single(self, text: Sequence[int], limit: int) -> list[int]:
        """At most `limit` ids: what is too long loses its end."""
        room = limit - len(self.before) - len(self.after)
        return [*self.before, *text[:room], *self.after]

    def pair(self, first: Sequence[int], second: Sequence[int], limit: int) -> list[int]:
        """At most `limit` ids; the second text loses its end, and the first keeps half of them."""
        room = limit - len(self.before) - 2 * len(self.after)
        kept = list(first[: max(room // 2, room - len(second))])
        rest = second[: room - len(kept)]
        return [*self.before, *kept, *self.after, *rest, *self.after]

    def second_start(self, first: Sequence[int], second: Sequence[int], limit: int) -> int:
        """Where the second text begins in `pair`."""
        room = limit - len(self.before) - 2 * len(self.after)
        kept = min(len(first), max(room // 2, room - len(second)))
        return len(self.before) + kept + len(self.after)


ENCODER = Frame("[CLS]", "[SEP]", "[PAD]")  # BERT
DECODER = Frame(None, "<|endoftext|>", "<|endoftext|>")  # GPT: the end is what it classifies at
SOURCE = Frame(None, "</s>", "<pad>")  # of translation; targets are framed by their own batch


def with_frame(tokenizer: Tokenizer, frame: Frame) -> None:
    """Give the tokenizer the post-processor that puts the frame around texts."""
    before = "" if frame.before is None else f"{frame.before} "
    tokens = filter(None, (frame.before, frame.after))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before}$A {frame.after}",
        pair=f"{before}$A {frame.after} $B:1 {frame.after}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )


def pad_rows(rows: Sequence[Ids], fill: int) -> Tensor:
    """[rows, longest], int64; the padding stands on the right."""
    out = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


def length_mask(rows: Sequence[Ids]) -> Tensor:
    """[rows, longest], int64: 1 at what stands in a row, 0 at its padding."""
    return pad_rows([[1] * len(row) for row in rows], 0)
