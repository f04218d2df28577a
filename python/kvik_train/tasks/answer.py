"""Extractive question answering: where in a text the answer to a question begins and ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.config import DataConfig, RunConfig
from kvik_train.data.embedded import PYTHON_FUNCTIONS, Question, python_functions
from kvik_train.data.framing import length_mask, pad_rows
from kvik_train.data.prepare import tokenizer_path
from kvik_train.data.records import Row
from kvik_train.data.table import Ragged, Table
from kvik_train.distributed import World
from kvik_train.errors import TrainError
from kvik_train.evaluation.scores import Score
from kvik_train.objective import Batch, ExampleObjective
from kvik_train.tasks.base import ExampleTask, Prepared
from kvik_train.tokenizer import load_tokenizer

_HELD_OUT = 10  # one context in so many; all questions about a context are on the same side
_LONGEST = 32  # tokens of an answer


class Answering(ExampleObjective):
    """[CLS] question [SEP] context [SEP]; the spans are places in this row."""

    def __init__(
        self, tables: Mapping[str, Table], config: RunConfig, pad: int, world: World
    ) -> None:
        super().__init__(tables, config.train, world)
        self._pad = pad

    def collate(
        self, split: str, rows: Sequence[int], drawn: tuple[int, slice] | None = None
    ) -> Batch:
        """Inputs ids, mask and segments [B, S]; targets first and last place [B], context [B]."""
        table = self.tables[split]
        texts = [table["text"][row] for row in rows]
        mask = length_mask(texts)
        context = torch.tensor([int(table["context"][row]) for row in rows])  # where it begins
        places = torch.arange(mask.shape[1])
        segments = ((places >= context[:, None]) & (mask == 1)).long()
        ends = [torch.tensor([int(table[name][row]) for row in rows]) for name in ("start", "end")]
        return Batch((pad_rows(texts, self._pad), mask, segments), (*ends, context))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the two cross-entropies over the row's places; padding is no candidate."""
        start, end = model(*batch.inputs)
        hidden = batch.inputs[1] == 0
        losses = [
            F.cross_entropy(logits.float().masked_fill(hidden, -torch.inf), target)
            for logits, target in zip((start, end), batch.targets, strict=False)
        ]
        return (losses[0] + losses[1]) / 2


class Answer(ExampleTask[Question]):
    name = "answer"
    use = "answer"
    sources = (PYTHON_FUNCTIONS,)
    columns = ("context", "question", "answer")
    unit = "questions"

    def named(self, data: DataConfig) -> tuple[list[Question], list[Question] | None]:
        train: list[Question] = []
        held_out: list[Question] = []
        contexts: dict[str, int] = {}
        for item in python_functions():
            number = contexts.setdefault(item.context, len(contexts))
            (held_out if number % _HELD_OUT == 0 else train).append(item)
        return train, held_out

    def parse(self, row: Row, known: Sequence[str]) -> Question:
        context, answer = row.text("context"), row.text("answer")
        start = context.find(answer)
        if start < 0:
            raise TrainError(
                f"{row.where('answer')}: {answer[:40]!r} does not stand in the context; "
                "an answer is a part of it, letter by letter"
            )
        return Question(context, row.text("question"), answer, start)

    def texts(self, examples: Sequence[Question]) -> Iterable[str]:
        return (text for item in examples for text in (item.question, item.context))

    def encode(
        self,
        examples: Sequence[Question],
        tokenizer: Tokenizer,
        labels: Sequence[str],
        config: RunConfig,
    ) -> Table:
        """Answers that the cut to the context length would lose are left out."""
        frame, limit = self.frame(config).ids(tokenizer), config.model.context_length
        tokenizer.encode_special_tokens = True
        questions = tokenizer.encode_batch([e.question for e in examples], add_special_tokens=False)
        contexts = tokenizer.encode_batch([e.context for e in examples], add_special_tokens=False)
        tokenizer.encode_special_tokens = False
        texts, spans, begins = [], [], []
        for item, question, context in zip(examples, questions, contexts, strict=True):
            first, last = _token_span(context, item.start, item.start + len(item.answer))
            begin = frame.second_start(question.ids, context.ids, limit)
            text = frame.pair(question.ids, context.ids, limit)
            if first is None or last is None or begin + last >= len(text) - len(frame.after):
                continue
            texts.append(text)
            spans.append((begin + first, begin + last))
            begins.append(begin)
        places = np.array(spans, dtype=np.int64).reshape(-1, 2)
        return {
            "text": Ragged.of(texts),
            "start": places[:, 0],
            "end": places[:, 1],
            "context": np.array(begins, dtype=np.int64),
        }

    def objective(
        self, config: RunConfig, folder: Path, prepared: Prepared, world: World
    ) -> Answering:
        pad = self.frame(config).ids(load_tokenizer(tokenizer_path(folder))).pad
        return Answering(self.tables(folder), config, pad, world)

    @torch.no_grad()
    def scores(
        self, model: nn.Module, config: RunConfig, folder: Path, prepared: Prepared
    ) -> list[Score]:
        """Exact match of the span, and the F1 of its tokens.

        The baseline answers with the span whose place in the context is the commonest one.
        """
        device = next(model.parameters()).device
        objective = self.objective(config, folder, prepared, World(0, 1, device))
        train = objective.tables["train"]
        usual = _commonest_span(train)
        exact, overlap, plain, plain_overlap, total = 0, 0.0, 0, 0.0, 0
        for rows, batch in objective.all_batches():
            start, end = model(*batch.inputs)
            chosen = best_spans(start, end, batch.inputs[2] == 1)
            first, last, begin = batch.targets
            for row in range(len(rows)):
                expected = (int(first[row]), int(last[row]))
                guess = (int(begin[row]) + usual[0], int(begin[row]) + usual[1])
                exact += chosen[row] == expected
                overlap += span_f1(chosen[row], expected)
                plain += guess == expected
                plain_overlap += span_f1(guess, expected)
            total += len(rows)
        name = "the commonest place"
        return [
            Score("exact match", exact / total, plain / total, name, total, self.unit),
            Score("F1", overlap / total, plain_overlap / total, name, total, self.unit),
        ]


def best_spans(start: Tensor, end: Tensor, allowed: Tensor) -> list[tuple[int, int]]:
    """The most probable first and last place, first <= last, of logits [B, S]; both allowed."""
    length = start.shape[1]
    places = torch.arange(length)
    distance = places[None, :] - places[:, None]
    possible = ((distance >= 0) & (distance < _LONGEST)).to(start.device)
    hidden = ~allowed
    first = start.masked_fill(hidden, -torch.inf)[:, :, None]
    last = end.masked_fill(hidden, -torch.inf)[:, None, :]
    scores = (first + last).masked_fill(~possible, -torch.inf).flatten(1)  # [B, S * S]
    return [divmod(int(index), length) for index in scores.argmax(dim=1)]


def span_f1(found: tuple[int, int], expected: tuple[int, int]) -> float:
    """2 * shared / (tokens of both)."""
    shared = min(found[1], expected[1]) - max(found[0], expected[0]) + 1
    sizes = sum(last - first + 1 for first, last in (found, expected))
    return 2 * max(0, shared) / sizes


def _token_span(encoding: Encoding, start: int, end: int) -> tuple[int | None, int | None]:
    """The tokens that hold the characters from `start` to `end`; None where a part has none."""
    inside = [
        index
        for index, (left, right) in enumerate(encoding.offsets)
        if right > start and left < end and right > left
    ]
    return (inside[0], inside[-1]) if inside else (None, None)


def _commonest_span(table: Table) -> tuple[int, int]:
    begin = np.asarray(table["context"])
    spans = np.stack((np.asarray(table["start"]) - begin, np.asarray(table["end"]) - begin), axis=1)
    found, counts = np.unique(spans, axis=0, return_counts=True)
    first, last = found[counts.argmax()]
    return int(first), int(last)
