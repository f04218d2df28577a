"""Tasks by name: what a model learns, from which data, and how that is judged.

A task is one file here and one line below; the families that learn it say so in
kvik_train/models/__init__.py.
"""

from __future__ import annotations

from kvik_train.errors import TrainError
from kvik_train.tasks.answer import Answer
from kvik_train.tasks.base import Prepared, Task
from kvik_train.tasks.classify import Classify
from kvik_train.tasks.classify_image import ClassifyImage
from kvik_train.tasks.lm import LanguageModelling
from kvik_train.tasks.mlm import MaskedLanguageModelling
from kvik_train.tasks.tag import Tag
from kvik_train.tasks.translate import Translate

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        LanguageModelling(), MaskedLanguageModelling(), Classify(), Tag(), Answer(), Translate(),
        ClassifyImage(),
    )
}  # fmt: skip

__all__ = ["TASKS", "Prepared", "Task", "find_task"]


def find_task(name: str) -> Task:
    if name not in TASKS:
        raise TrainError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]
