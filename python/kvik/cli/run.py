"""`kvik run`: what a model says of whole texts or images, or makes of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvik.cli.common import (
    ModelPath,
    Threads,
    TokenizerPath,
    Weights,
    check_model_path,
    check_weights,
)
from kvik.errors import FileError, InvalidArgumentError
from kvik.zero_shot import TEMPLATE

if TYPE_CHECKING:
    from kvik.model import Model

__all__ = ["run"]


def run(
    model: ModelPath,
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            show_default=False,
            help="Texts, or files of images; - reads them from stdin, by lines.",
        ),
    ],
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="What the texts are to answer.")
    ] = None,
    top: Annotated[
        int, typer.Option("--top", help="Tokens to show for a mask, labels of a single input.")
    ] = 5,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", help="Of a model that generates, the labels to choose from: a,b,c."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            show_default=TEMPLATE,
            help="With --labels, how text and label become one text.",
        ),
    ] = None,
    normalization: Annotated[
        str | None,
        typer.Option(
            "--normalization",
            show_default="none",
            help="With --labels, how their scores are made alike: none, length or prior.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the vectors of an embedder to this .npy file."),
    ] = None,
    beams: Annotated[
        int, typer.Option("--beams", help="Hypotheses that a translator keeps of each text.")
    ] = 4,
    n_best: Annotated[int, typer.Option("--n-best", help="Translations to show of each text.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON for each text.")
    ] = False,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are longer than the model reads.")
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            show_default="what the file says",
            help="fill_mask, classify, tag, answer, embed, translate or classify_image.",
        ),
    ] = None,
    weights: Weights = "f32",
    threads: Threads = None,
    tokenizer: TokenizerPath = None,
) -> None:
    """Fill in masks, classify, tag, answer, embed or translate: what the model's task is.

    fill_mask: the likeliest tokens. classify: the label of each text or image, of a single one the
    likeliest labels; with --labels a model that generates does it too. tag: a line for each word.
    answer: the part of each text that answers --question. embed: the cosines between the texts, or
    with --out their vectors. translate: a line for each text.
    """
    from kvik.loading import load

    if out is not None and out.suffix != ".npy":
        raise InvalidArgumentError(f"--out is {out}; expected a name that ends in .npy")
    loaded = load(
        check_model_path(model),
        threads=threads,
        tokenizer=tokenizer,
        weights=check_weights(weights),
        task=task,  # type: ignore[arg-type]
    )
    zero_shot = _zero_shot(loaded, labels, template, normalization)
    _check_options(loaded, question, out)
    lines = _read_lines() if texts == ["-"] else texts
    answers: dict[str, Callable[[], Iterator[tuple[Any, str]]]] = {
        "fill_mask": lambda: _fill_mask(loaded, lines, top),
        "classify": lambda: _classify(loaded, lines, top, truncate=truncate),
        "classify_image": lambda: _classify(loaded, lines, top, truncate=truncate),
        "generate": lambda: _classify(loaded, lines, top, truncate=truncate, **zero_shot),
        "tag": lambda: _tag(loaded, lines),
        "answer": lambda: _answer(loaded, lines, question or ""),
        "embed": lambda: _embed(loaded, lines, truncate, out),
        "translate": lambda: _translate(loaded, lines, beams, n_best, truncate),
    }
    for found, shown in answers[loaded.task]():
        print(json.dumps(found, ensure_ascii=False) if as_json else shown)


def _zero_shot(
    model: Model, labels: str | None, template: str | None, normalization: str | None
) -> dict[str, Any]:
    """The options of classify() for a model that generates."""
    if model.task == "generate":
        if labels is None:
            raise InvalidArgumentError(
                "this model generates: use kvik generate, or name labels to choose from with "
                "--labels a,b,c"
            )
        named = [label.strip() for label in labels.split(",")]
        return {
            "labels": named,
            "template": TEMPLATE if template is None else template,
            "normalization": "none" if normalization is None else normalization,
        }
    for option, value in (
        ("--labels", labels), ("--template", template), ("--normalization", normalization)
    ):  # fmt: skip
        if value is not None:
            raise InvalidArgumentError(
                f"{option} is for models that generate; this one: {model.task}"
            )
    return {}


def _check_options(model: Model, question: str | None, out: Path | None) -> None:
    if model.task == "answer" and question is None:
        raise InvalidArgumentError("this model answers questions: give one with --question")
    if model.task != "answer" and question is not None:
        raise InvalidArgumentError(f"--question is for models that answer; this one: {model.task}")
    if model.task != "embed" and out is not None:
        raise InvalidArgumentError(f"--out is for models that embed; this one: {model.task}")


def _read_lines() -> list[str]:
    lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not lines:
        raise InvalidArgumentError("no text came from stdin")
    return lines


def _fill_mask(model: Model, texts: list[str], top: int) -> Iterator[tuple[Any, str]]:
    for text in texts:
        masks = model.fill_mask(text, top=top)
        yield (
            [[vars(filling) for filling in mask] for mask in masks],
            "\n\n".join(
                "\n".join(f"{item.score:7.2%}  {item.text}" for item in mask) for mask in masks
            ),
        )


def _classify(
    model: Model, inputs: list[str], top: int, **options: Any
) -> Iterator[tuple[Any, str]]:
    found = model.classify(inputs, **options)
    what = "image" if model.task == "classify_image" else "text"
    for given, item in zip(inputs, found, strict=True):
        if len(inputs) > 1:
            shown = f"{item.label}\t{item.score:.2%}\t{given}"
        else:
            shown = "\n".join(f"{score:7.2%}  {label}" for label, score in item.top(top))
        yield {what: given, "label": item.label, "scores": item.scores}, shown


def _tag(model: Model, texts: list[str]) -> Iterator[tuple[Any, str]]:
    for number, text in enumerate(texts):
        tags = model.tag(text)
        lines = [f"{tag.word}\t{tag.label}\t{tag.score:.2%}" for tag in tags]
        if number:
            lines.insert(0, "")
        yield [vars(tag) for tag in tags], "\n".join(lines)


def _answer(model: Model, texts: list[str], question: str) -> Iterator[tuple[Any, str]]:
    for text in texts:
        answer = model.answer(question, text)
        yield vars(answer), f"{answer.text}\t{answer.score:.2%}"


def _translate(
    model: Model, texts: list[str], beams: int, n_best: int, truncate: bool
) -> Iterator[tuple[Any, str]]:
    found = model.translate(texts, beams=beams, n_best=n_best, truncate=truncate)
    for text, best in zip(texts, found, strict=True):
        shown = [best[0].text] if n_best == 1 else [f"{t.score:8.3f}  {t.text}" for t in best]
        yield {"text": text, "translations": [vars(t) for t in best]}, "\n".join(shown)


def _embed(
    model: Model, texts: list[str], truncate: bool, out: Path | None
) -> Iterator[tuple[Any, str]]:
    import numpy as np

    vectors = model.embed(texts, truncate=truncate)
    if out is not None:
        try:
            with out.open("wb") as file:
                np.save(file, vectors)
        except OSError as error:
            raise FileError(f"can't write {out}: {error.strerror}") from error
        print(f"{vectors.shape[0]} vectors of {vectors.shape[1]} in {out}", file=sys.stderr)
        return
    if len(texts) == 1:
        numbers = [round(float(x), 6) for x in vectors[0]]
        yield {"text": texts[0], "vector": numbers}, " ".join(map(str, numbers))
        return
    for text, row, vector in zip(texts, vectors @ vectors.T, vectors, strict=True):
        yield (
            {"text": text, "vector": [round(float(x), 6) for x in vector]},
            "  ".join(f"{cosine:6.3f}" for cosine in row) + f"  {text}",
        )
