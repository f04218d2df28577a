"""Data sets: what is read, and how a fault in one is told."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kvik_train.config import DataConfig, RunConfig
from kvik_train.data import embedded
from kvik_train.data.records import parse_columns, read_rows
from kvik_train.data.table import Ragged, digest, load_table, save_table
from kvik_train.errors import TrainError
from kvik_train.presets import find_fine_tuning
from kvik_train.tasks import find_task

from .runs import make_config

CELLS = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12
).filter(lambda text: text.strip())
ROWS = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8)


@given(ROWS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_csv_and_jsonl_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("text", "label"), *rows])
    (folder / "a.csv").write_text(buffer.getvalue(), encoding="utf-8", newline="")
    lines = [json.dumps({"text": a, "label": b}) + "\n" for a, b in rows]
    (folder / "b.jsonl").write_text("".join(lines), encoding="utf-8")
    for name in ("a.csv", "b.jsonl"):
        found = read_rows(folder / name, ("text", "label"), {})
        assert [(row.text("text"), row.values["label"]) for row in found] == rows
    both = read_rows(folder, ("text", "label"), {})
    assert len(both) == 2 * len(rows)


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_tables_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("table")
    table = {"row": Ragged.of(rows)}
    save_table(table, folder, "train")
    loaded = load_table(folder, "train")
    assert [list(loaded["row"][i]) for i in range(len(loaded["row"]))] == rows
    assert digest({"train": loaded}) == digest({"train": table})


def config_for(task: str, path: Path, **data: str | None) -> RunConfig:
    config = make_config("bert" if task != "translate" else "transformer", task, path.parent)
    return replace(config, data=replace(config.data, source=str(path), **data))


FAULTS = [
    ("classify", "a.csv", "text,stars\nx,1\n",
     "a.csv line 1: no column 'label'; found text, stars; name it with --columns label=COLUMN"),
    ("classify", "a.csv", "text,label\nx,a\ny\n", "a.csv line 3 has 1 columns, expected 2"),
    ("classify", "a.csv", "text,label\nx,a\n,b\n", "a.csv line 3, column 'text': found nothing"),
    ("classify", "a.csv", "text,label\nx,a\ny,\n", "a.csv line 3, column 'label': found nothing"),
    ("classify", "a.csv", 'text,label\n"x,a\n', "a.csv line 2"),
    ("classify", "a.csv", "text,label\n", "has no rows"),
    ("classify", "a.csv", "text,label\nx,a\ny,a\nz,a\n", "has the label 'a'; there is nothing"),
    ("classify", "a.jsonl", '{"text": "x"}\n', "a.jsonl line 1: no column 'label'"),
    ("classify", "a.jsonl", '{"text": 1, "label": "a"}\n', "line 1, column 'text': found 1"),
    ("classify", "a.jsonl", "{\n", "a.jsonl line 1 is not JSON"),
    ("classify", "a.jsonl", "[1]\n", "line 1: found [1], expected an object"),
    ("classify", "a.xyz", "x", "is none of .csv, .tsv, .jsonl"),
    ("tag", "a.jsonl", '{"words": ["a", "b"], "tags": ["x"]}\n', "found 1 tags for 2 words"),
    ("tag", "a.jsonl", '{"words": 3, "tags": ["x"]}\n', "found 3, expected a list of texts"),
    ("answer", "a.jsonl", '{"context": "abc", "question": "q", "answer": "z"}\n',
     "'z' does not stand in the context"),
    ("translate", "a.tsv", "one\teins\textra\n", "a.tsv line 1 has 3 columns, expected 2"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "name", "content", "words"), FAULTS)
def test_faults_are_named(task: str, name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    config = config_for(task, tmp_path / name)
    with pytest.raises(TrainError) as caught:
        find_task(task).prepare(config, tmp_path, lambda text: None)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_unknown_labels_of_the_validation_data(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,good\ny,bad\n")
    (tmp_path / "b.csv").write_text("text,label\nx,good\ny,ugly\n")
    config = config_for("classify", tmp_path / "a.csv", validation=str(tmp_path / "b.csv"))
    with pytest.raises(
        TrainError, match=r"b.csv line 3, column 'label': unknown label 'ugly'; .* bad, good"
    ):
        find_task("classify").prepare(config, tmp_path, lambda text: None)


def test_columns_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("stars,review\n1,bad\n5,fine\n1,poor\n5,good\n")
    config = config_for("classify", tmp_path / "a.csv", columns="text=review, label=stars")
    prepared = find_task("classify").prepare(config, tmp_path / "run", lambda text: None)
    assert prepared.labels == ("1", "5")
    for wrong in ("review", "words=review", "text="):
        with pytest.raises(TrainError, match="--columns has"):
            parse_columns(wrong, ("text", "label"))


def test_parallel_text_in_two_files_and_without_a_header(tmp_path: Path) -> None:
    pairs = [(f"one {i}", f"eins {i}") for i in range(10)]
    (tmp_path / "a.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    (tmp_path / "a.en").write_text("".join(f"{a}\n" for a, _ in pairs))
    (tmp_path / "a.de").write_text("".join(f"{b}\n" for _, b in pairs))
    task = find_task("translate")
    found = []
    for source, target in (("a.tsv", None), ("a.en", str(tmp_path / "a.de"))):
        config = config_for("translate", tmp_path / source, target=target)
        found.append(task.prepare(config, tmp_path / source.replace(".", ""), lambda text: None))
    assert found[0].sha256 == found[1].sha256
    (tmp_path / "a.de").write_text("eins\n")
    with pytest.raises(TrainError, match=r"has 10 lines and .* has 1; line by line"):
        task.prepare(config, tmp_path / "again", lambda text: None)


def test_folders_of_texts_and_images(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "texts" / label).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "texts" / label / f"{number}.txt").write_text(f"{label} {number}")
    prepared = find_task("classify").prepare(
        config_for("classify", tmp_path / "texts"), tmp_path / "run", lambda text: None
    )
    assert prepared.labels == ("a", "b")
    config = make_config("cnn", "classify-image", tmp_path)
    task = find_task("classify-image")
    task.prepare(config, tmp_path / "images", lambda text: None)
    folder = Path(config.data.source)
    (folder / "dark" / "broken.png").write_bytes(b"no image")
    with pytest.raises(TrainError, match=r"broken\.png is not an image"):
        task.prepare(config, tmp_path / "more", lambda text: None)
    (tmp_path / "one" / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "one" / "a" / "0.png")
    with pytest.raises(TrainError, match="needs two subfolders with images"):
        task.check(replace(config, data=DataConfig(str(tmp_path / "one"), tokenizer="none")))
    with pytest.raises(TrainError, match="images have no tokenizer; leave --tokenizer out"):
        task.check(replace(config, data=replace(config.data, tokenizer="bpe")))


def test_a_second_stage_that_there_is_not_has_a_hint() -> None:
    with pytest.raises(TrainError, match=r"did you mean classify\? It can be for lm, classify"):
        find_fine_tuning("gpt", "clasify")
    with pytest.raises(TrainError, match="There are: gpt for lm"):
        find_fine_tuning("cnn", "classify")


def test_the_embedded_data() -> None:
    train, held_out = embedded.number_words(200)
    assert len(train) == 200
    assert len(held_out) == len(set(held_out)) == 10
    assert not set(train) & set(held_out)
    assert all(any(c.isalpha() for c in text) for pair in train for text in pair)
    modules = embedded.python_modules()
    assert len({label for _, label in modules}) >= 8
    source = "def f(x):\n    return 'a b' + 3  # why\n"
    tags = embedded._character_tags(source)
    expected = {"def": "keyword", "f(": "call", "'a b'": "string", "3": "number",
                "# why": "comment",
                "+": "operator", "return": "keyword"}  # fmt: skip
    for text, tag in expected.items():
        assert tags[source.index(text)] == tag, text
    (block,) = embedded._functions(source)
    assert block == source.rstrip()


def test_unknown_sources_have_a_hint(tmp_path: Path) -> None:
    for task, wrong, right in (
        ("classify", "python-module", "python-modules"),
        ("translate", "numberwords", "number-words"),
        ("tag", "python-tag", "python-tags"), ("answer", "python-function", "python-functions"),
    ):  # fmt: skip
        config = config_for(task, tmp_path / "x")
        config = replace(config, data=replace(config.data, source=wrong))
        with pytest.raises(TrainError, match=f"did you mean {right}"):
            find_task(task).check(config)
