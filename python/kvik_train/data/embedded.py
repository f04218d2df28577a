"""Labelled data that needs no file: made by rule from Python's own library, and number words."""

from __future__ import annotations

import io
import keyword
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvik_train.data.corpus import open_corpus
from kvik_train.errors import TrainError

PYTHON_MODULES = "python-modules"
PYTHON_TAGS = "python-tags"
PYTHON_FUNCTIONS = "python-functions"
NUMBER_WORDS = "number-words"

# Single files of the standard library that every supported version has, each large and with a
# subject of its own.
_MODULES = (
    "_pydecimal", "argparse", "ast", "doctest", "inspect", "ipaddress", "pickletools", "smtplib",
    "subprocess", "tarfile", "turtle", "typing",
)  # fmt: skip
_LINES = 4  # of source in a text to be classified or tagged
_LARGEST = 1_000_000  # numbers below it
_HELD_OUT = 20  # one number in so many is never trained on
# What BERT's pre-tokenizer calls a word.
WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


def python_modules() -> list[tuple[str, str]]:
    """(four lines of source, the module that they come from)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for name in _MODULES:
        path = root / f"{name}.py"
        if path.is_file():
            lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
            texts = ["\n".join(lines[i : i + _LINES]) for i in range(0, len(lines), _LINES)]
            found += [(text, name) for text in texts]
    if len({label for _, label in found}) < 2:
        raise TrainError(
            f"this Python has no source of its standard library in {root}; "
            "name a data set with --data"
        )
    return found


def python_tags() -> list[tuple[list[str], list[str]]]:
    """(words of four lines of source, the tag of each), as Python's own tokenizer sees them."""
    found = []
    for source in _sources(limit=1_500_000):
        tags = _character_tags(source)
        start = 0
        lines = source.splitlines(keepends=True)
        for first in range(0, len(lines), _LINES):
            text = "".join(lines[first : first + _LINES])
            words = list(WORD.finditer(text))
            if len(words) >= _LINES:
                kinds = [tags[start + word.start()] for word in words]
                found.append(([word.group() for word in words], kinds))
            start += len(text)
    return found


def _character_tags(source: str) -> list[str]:
    """The tag of every character."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tags = ["other"] * len(source)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for index, token in enumerate(tokens):
        following = tokens[index + 1].string if index + 1 < len(tokens) else ""
        tag = _tag(token, following)
        begin = starts[token.start[0] - 1] + token.start[1]
        end = starts[token.end[0] - 1] + token.end[1] if token.end[0] < len(starts) + 1 else begin
        tags[begin:end] = [tag] * max(0, min(end, len(source)) - begin)
    return tags


def _tag(token: tokenize.TokenInfo, following: str) -> str:
    if token.type == tokenize.NAME:
        if keyword.iskeyword(token.string):
            return "keyword"
        return "call" if following == "(" else "name"
    # From 3.12 on the parts of an f-string are tokens of their own, called FSTRING_START and so on.
    if token.type == tokenize.STRING or "STRING" in tokenize.tok_name[token.type]:
        return "string"
    kinds = {tokenize.NUMBER: "number", tokenize.COMMENT: "comment", tokenize.OP: "operator"}
    return kinds.get(token.type, "other")


@dataclass(frozen=True)
class Question:
    context: str
    question: str
    answer: str
    start: int  # of the answer in the context, in characters


_SIGNATURE = re.compile(r"^ *def (\w+)\(([^()\n]+)\):$", re.MULTILINE)
_RETURN = re.compile(r"^ *return (\S.*)$", re.MULTILINE)


def python_functions() -> list[Question]:
    """Questions about short functions: its name, its parameters, what it returns."""
    found = []
    for source in _sources(limit=None):
        for block in _functions(source):
            signature, returned = _SIGNATURE.search(block), _RETURN.search(block)
            if signature is None or returned is None:
                continue
            for question, match, group in (
                ("What is the name of the function?", signature, 1),
                ("What are its parameters?", signature, 2),
                ("What does it return?", returned, 1),
            ):
                answer = match.group(group)
                kept = answer.rstrip()
                found.append(Question(block, question, kept, match.start(group)))
    return found


def _functions(source: str) -> Iterator[str]:
    """Functions of 2 to 8 lines, one after the other; nothing nested in them."""
    lines = source.splitlines()
    index = 0
    while index < len(lines):
        match = re.match(r"^( *)def ", lines[index])
        end = index + 1
        if match:
            indent = len(match.group(1))
            while end < len(lines) and lines[end].strip():
                if len(lines[end]) - len(lines[end].lstrip()) <= indent:
                    break
                end += 1
            if 2 <= end - index <= 8:
                yield "\n".join(line[indent:] for line in lines[index:end])
        index = end


def _sources(limit: int | None) -> Iterator[str]:
    """The files of the standard library that Python can tokenise."""
    corpus = open_corpus("python-stdlib")
    used = 0
    for path in corpus.files:
        if limit is not None and used >= limit:
            return
        try:
            source = path.read_text("utf-8")
            list(tokenize.generate_tokens(io.StringIO(source).readline))
        except (UnicodeDecodeError, SyntaxError, tokenize.TokenError):
            continue
        if "\f" in source or "\r" in source:  # splitlines and the tokenizer count them differently
            continue
        used += len(source)
        yield source


def number_words(count: int, seed: int = 1) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(English, German) pairs to train on, `count` of them, and held-out ones, one for each twenty.

    Half of the numbers are drawn evenly below a million, half evenly by their logarithm. A number
    that is held out is never trained on.
    """
    spell = _speller()
    generator = np.random.Generator(np.random.Philox(seed))
    train: list[tuple[str, str]] = []
    held_out: dict[int, tuple[str, str]] = {}
    wanted = max(1, count // _HELD_OUT)
    while len(train) < count or len(held_out) < wanted:
        uniform = generator.random(2)
        even = uniform[0] < 0.5
        number = int(uniform[1] * _LARGEST) if even else int(_LARGEST ** uniform[1]) - 1
        if is_held_out(number):
            if number not in held_out and len(held_out) < wanted:
                held_out[number] = spell(number)
        elif len(train) < count:
            train.append(spell(number))
    return train, list(held_out.values())


def is_held_out(number: int) -> bool:
    """Spread evenly, and the same for every seed: a multiplicative hash (Knuth)."""
    return (number * 2654435761 % (1 << 32)) * _HELD_OUT >> 32 == 0


def _speller() -> Callable[[int], tuple[str, str]]:
    try:
        from num2words import num2words
    except ModuleNotFoundError as error:
        raise TrainError(
            "the data set number-words needs num2words, which is not installed: "
            "pip install 'kvik[train]'"
        ) from error
    return lambda number: (num2words(number, lang="en"), num2words(number, lang="de"))
