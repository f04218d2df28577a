"""What a loaded model is for, and what its answers look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from kvik.arguments import check_count
from kvik.errors import InvalidArgumentError, InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kvik import _core

__all__ = [
    "TASK_KEY",
    "Answer",
    "Classification",
    "Filling",
    "Tag",
    "Task",
    "find_task",
    "wrong_task",
]

Task: TypeAlias = Literal[
    "generate", "fill_mask", "classify", "tag", "answer", "embed", "translate", "classify_image"
]

TASK_KEY = "kvik.task"
_OTHER_NAMES = {"text-generation": "generate"}  # in files of earlier versions
# How each task is used, for the message of a method that does not fit.
_METHODS = {
    "generate": "generate(), stream(), score() and logits()",
    "fill_mask": "fill_mask()",
    "classify": "classify()",
    "tag": "tag()",
    "answer": "answer()",
    "embed": "embed()",
    "translate": "translate()",
    "classify_image": "classify() with images",
}
# The one output of a model, incremental or not, that is for vectors, as exporters spell it.
_HIDDEN = "last_hidden_state"


@dataclass(frozen=True)
class Classification:
    """The label of a text or an image, and how likely each label is."""

    label: str
    score: float  # the label's probability
    scores: Mapping[str, float]  # of every label, in the model's order

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest labels with their probabilities, the best first."""
        check_count(count, "count", 1)
        return sorted(self.scores.items(), key=lambda item: -item[1])[:count]

    def __str__(self) -> str:
        return f"{self.label} ({self.score:.1%})"


@dataclass(frozen=True)
class Filling:
    """A token that may stand where the mask is."""

    token: str  # the vocabulary's spelling
    id: int
    score: float  # its probability
    text: str  # the text with this token in place of its mask


@dataclass(frozen=True)
class Tag:
    """The label of one word; text[start:end] is the word.

    Of a text that was given as words, the places are within the word.
    """

    word: str
    label: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """A part of a context: context[start:end]."""

    text: str
    score: float  # the probability of the span among all spans of the context
    start: int
    end: int


def find_task(
    core: _core.Model, metadata: Mapping[str, str], given: str | None, file: Path
) -> Task:
    """What the caller says, else the file, else what the inputs and outputs look like.

    Raises:
        InvalidModelError: the file names a task that no model has.
    """
    if given is not None:
        return _fitting(_known(given), core, InvalidArgumentError, "task=")
    if TASK_KEY in metadata:
        named = _OTHER_NAMES.get(metadata[TASK_KEY], metadata[TASK_KEY])
        if named not in _METHODS:
            raise InvalidModelError(
                f"{file}: metadata {TASK_KEY} is {named[:40]!r}; kvik.load knows "
                f"{', '.join(_METHODS)}: run the file with kvik.InferenceSession"
            )
        return _fitting(_known(named), core, InvalidModelError, f"{file}: metadata {TASK_KEY} ")
    return _judged(core.info)


def _fitting(task: Task, core: _core.Model, error: type[Exception], who: str) -> Task:
    """The task, if the model's outputs are of its kind; a model that can't encode says so later."""
    info = core.info
    if info.reads_images != (task == "classify_image"):
        raise error(
            f"{who}{task} does not fit a model of {'images' if info.reads_images else 'texts'}"
        )
    if info.two_sequences != (task == "translate"):
        kind = "a source and a target" if info.two_sequences else "one sequence"
        raise error(f"{who}{task} does not fit a model of {kind}")
    if not info.encoded or task in ("generate", "embed", "classify_image"):
        return task
    if info.encoded_per_token == (task == "classify"):
        rows = "for every token" if info.encoded_per_token else "for a whole text"
        raise error(
            f"{who}{task} does not fit the model's output {info.encoded[0][0]!r}, which has a row "
            f"{rows}"
        )
    return task


def _known(task: str) -> Task:
    for known in get_args(Task):
        if task == known:
            return known  # type: ignore[no-any-return]
    raise InvalidArgumentError(f"task must be one of {', '.join(_METHODS)}; found {task!r}")


def _judged(info: _core.ModelInfo) -> Task:
    if info.two_sequences:
        return "translate"
    if info.reads_images:
        return "classify_image"
    if info.incremental and [item.name for item in info.outputs] == [_HIDDEN]:
        return "embed"
    names = [name for name, _ in info.encoded]
    if not names:
        return "generate"
    if names == ["start_logits", "end_logits"]:
        return "answer"
    if names != ["logits"]:
        return "embed"
    if not info.encoded_per_token:
        return "classify"
    return "fill_mask" if info.encoded[0][1] >= info.token_limit else "tag"


def wrong_task(method: str, task: Task) -> InvalidArgumentError:
    """The error of a method that does not fit."""
    return InvalidArgumentError(
        f"{method}() does not fit this model, whose task is {task}: use {_METHODS[task]}, or "
        f"load it with task= if it is for something else"
    )
