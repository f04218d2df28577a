"""Texts for models that have no tokenizer: the error says what is missing and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.export.families import TRANSFORMER

import kvik

MISSING = re.escape(
    " need a tokenizer, and this model has none: pass tokenizer='path/to/tokenizer.json' to "
    "kvik.load, or put tokenizer.json beside the model"
)
IDS = ", or pass token ids"
SOURCE, TARGET = [5, 6, 7], [1, 8, 9]


def without(source: Path, folder: Path, *keys: str) -> Path:
    """The file without these keys of its metadata, and with no tokenizer beside it."""
    model = onnx.load(source)
    kept = [item for item in model.metadata_props if item.key not in keys]
    assert len(kept) == len(model.metadata_props) - len(keys)
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def check_refused(
    what: str, instead: str, method: Callable[..., object], *given: object, **named: object
) -> None:
    with pytest.raises(kvik.InvalidArgumentError, match=f"^{what}{MISSING}{re.escape(instead)}$"):
        method(*given, **named)


@pytest.mark.parametrize(
    ("case", "calls"),
    [
        (("bert", "mlm", None), [lambda model: model.fill_mask("one [MASK] three")]),
        (
            ("bert", "classify", None),
            [
                lambda model: model.classify("one two"),
                lambda model: model.classify([("one", "two")]),
            ],
        ),
        (("gpt", "classify", None), [lambda model: model.classify("one two")]),
        (("bert", "mlm", "embed"), [lambda model: model.embed(["one two", "three"])]),
        (("bert", "tag", None), [lambda model: model.tag("one two")]),
        (("bert", "answer", None), [lambda model: model.answer("one", "two three")]),
    ],
    ids=lambda item: "-".join(map(str, item)) if isinstance(item, tuple) else "",
)
def test_encoders(case, calls, files, tmp_path):
    model = kvik.load(without(files[case], tmp_path, "kvik.tokenizer"))
    for call in calls:
        check_refused("texts", "", call, model)
    # Ids take none, and neither does the weights' picture of them.
    ids = np.arange(3, 9)
    assert all(np.isfinite(rows[0]).all() for rows in model.encode([ids]).values())
    assert model.attention(ids).weights.size
    check_refused("texts", IDS, model.attention, "one two")


def test_translators(files, tmp_path):
    model = kvik.load(without(files[TRANSFORMER], tmp_path, "kvik.tokenizer"))
    check_refused("texts", "", model.translate, "one two")
    check_refused("texts", "", model.translate, ["one", "two"], n_best=2)
    for method in (model.logits, model.score):
        check_refused("texts", IDS, method, TARGET, source="one two")
        check_refused("text prompts", ", or use token ids", method, "one", source=SOURCE)
    check_refused("texts", IDS, model.attention, "one two")
    check_refused("texts", IDS, model.attention, SOURCE, "one")
    # The advice holds.
    whole = kvik.load(files[TRANSFORMER])
    expected = whole.logits(TARGET, source=SOURCE)
    assert np.array_equal(model.logits(TARGET, source=SOURCE), expected)
    assert model.score(TARGET, source=SOURCE).tokens[1] == f"<id {TARGET[1]}>"
    assert model.attention(SOURCE).weights.size


def test_translators_whose_targets_begin_somewhere(files, tmp_path):
    """A file that does not say with which id targets begin leaves that to the tokenizer."""
    path = without(files[TRANSFORMER], tmp_path, "kvik.tokenizer", "kvik.start_token_id")
    model = kvik.load(path)
    for method in (model.logits, model.score):
        check_refused("texts", IDS, method, "one", source=SOURCE)
        assert method(TARGET, source=SOURCE) is not None
    instead = ", or pass the target as token ids"
    check_refused("the first ids of targets", instead, model.attention, SOURCE)
    assert model.attention(SOURCE, TARGET).weights.size
