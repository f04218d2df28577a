"""Rows of CSV, TSV and JSONL files, each of which knows where it stands.

A fault in a data set is reported with the file, the line, the column, what was found there, and
what to do about it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvik_train.errors import TrainError

SUFFIXES = (".csv", ".tsv", ".jsonl")
_FIELD_LIMIT = 1 << 24  # characters in one cell; csv's own limit is 131,072


@dataclass(frozen=True)
class Row:
    values: Mapping[str, Any]
    file: Path
    line: int

    def where(self, column: str) -> str:
        return f"{self.file} line {self.line}, column {column!r}"

    def text(self, column: str) -> str:
        """The text in a column, which must not be empty."""
        value = self.values[column]
        if not isinstance(value, str) or not value.strip():
            raise TrainError(
                f"{self.where(column)}: found {_shown(value)}, expected text; "
                "fill it in or remove the line"
            )
        return value

    def label(self, column: str, known: Sequence[str] = ()) -> str:
        """A label: text, a whole number or a truth value; one of `known`, where these are given."""
        value = self.values[column]
        label = value.strip() if isinstance(value, str) else value
        if isinstance(label, bool | int):
            label = json.dumps(label)
        if not isinstance(label, str) or not label:
            raise TrainError(
                f"{self.where(column)}: found {_shown(value)}, expected a label; "
                "fill it in or remove the line"
            )
        return self.known_label(column, label, known)

    def known_label(self, column: str, label: str, known: Sequence[str]) -> str:
        if known and label not in known:
            raise TrainError(
                f"{self.where(column)}: unknown label {label!r}; the training data has "
                f"{_listed(known)}: correct it, or give it examples to learn from"
            )
        return label

    def texts(self, column: str) -> list[str]:
        """A list of texts: JSON's own, or words with spaces between them."""
        value = self.values[column]
        items = value.split() if isinstance(value, str) else value
        if not isinstance(items, list) or not items or not all(isinstance(i, str) for i in items):
            raise TrainError(
                f"{self.where(column)}: found {_shown(value)}, expected a list of texts, or words "
                "with spaces between them"
            )
        return items


def read_rows(
    path: Path, columns: Sequence[str], names: Mapping[str, str], *, headless: bool = False
) -> list[Row]:
    """The rows of a file, or of every CSV, TSV and JSONL file of a folder, in order of name.

    Args:
        columns: what each row must have.
        names: what a column is called in the files, where that is something else.
        headless: a TSV file whose first line names none of the columns has no header, and its
            columns are `columns` in their order.

    Raises:
        TrainError: names the file, line and column at fault.
    """
    rows: list[Row] = []
    for file in data_files(path):
        rows += _read_file(file, columns, names, headless)
    if not rows:
        raise TrainError(f"{path} has no rows; it needs some with {_listed(columns)}")
    return rows


def data_files(path: Path) -> list[Path]:
    """The file itself, or the CSV, TSV and JSONL files of a folder."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise TrainError(f"{path} has no {', '.join(SUFFIXES)} files")
        return files
    if not path.is_file():
        raise TrainError(f"no such file or folder: {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise TrainError(f"{path} is none of {', '.join(SUFFIXES)}: give it the suffix that it is")
    return [path]


def parse_columns(text: str | None, known: Sequence[str]) -> dict[str, str]:
    """What `--columns text=review,label=stars` says: {"text": "review", "label": "stars"}."""
    names: dict[str, str] = {}
    for item in (text or "").split(","):
        ours, equals, theirs = (part.strip() for part in item.partition("="))
        if not item.strip():
            continue
        if not equals or not theirs or ours not in known:
            raise TrainError(
                f"--columns has {item.strip()!r}; it takes NAME=COLUMN with a NAME of "
                f"{_listed(known)}, such as {known[0]}=COLUMN"
            )
        names[ours] = theirs
    return names


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without their ends."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TrainError(f"{path} is not UTF-8 text; convert it, for example with iconv") from error
    except OSError as error:
        raise TrainError(f"cannot read {path}: {error.strerror}") from error


def _read_file(
    path: Path, columns: Sequence[str], names: Mapping[str, str], headless: bool
) -> Iterator[Row]:
    if path.suffix.lower() == ".jsonl":
        parsed = _json_lines(path)
    else:
        parsed = _cells(path, columns, names, headless)
    for line, values in parsed:
        for column in columns:
            if names.get(column, column) not in values:
                raise _missing(path, line, column, names, list(values))
        yield Row({column: values[names.get(column, column)] for column in columns}, path, line)


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            raise TrainError(f"{path} line {number} is not JSON: {reason}") from error
        if not isinstance(values, dict):
            raise TrainError(f"{path} line {number}: found {_shown(values)}, expected an object")
        yield number, values


def _cells(
    path: Path, columns: Sequence[str], names: Mapping[str, str], headless: bool
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a CSV file, with quotes, or of a TSV file, in which a quote is a character."""
    tabs = path.suffix.lower() == ".tsv"
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(
        (line + "\n" for line in read_lines(path)),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=not tabs,
    )
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise TrainError(f"{path} line {reader.line_num}: {error}") from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = [cell.strip().removeprefix("\ufeff") for cell in cells]
            wanted = {names.get(column, column) for column in columns}
            if not (headless and tabs and not wanted & set(header)):
                for column in columns:
                    if names.get(column, column) not in header:
                        raise _missing(path, line, column, names, header)
                continue
            header = list(columns)
        if len(cells) != len(header):
            raise TrainError(
                f"{path} line {line} has {len(cells)} columns, expected {len(header)} "
                f"({', '.join(header)}); "
                + ("there is a tab too many or too few" if tabs else "quote texts with commas")
            )
        yield line, dict(zip(header, cells, strict=True))


def _missing(
    path: Path, line: int, column: str, names: Mapping[str, str], found: Sequence[str]
) -> TrainError:
    name = names.get(column, column)
    hint = "correct --columns" if column in names else f"name it with --columns {column}=COLUMN"
    return TrainError(f"{path} line {line}: no column {name!r}; found {_listed(found)}; {hint}")


def _listed(items: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(items[:most]) or "none"
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def _shown(value: object) -> str:
    if value is None or value == "":
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
