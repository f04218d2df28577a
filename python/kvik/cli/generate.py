"""`kvik generate`: the prompt's continuation on stdout, figures on stderr."""

from __future__ import annotations

import secrets
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvik.cli.common import (
    Cache,
    ModelPath,
    Threads,
    TokenizerPath,
    Weights,
    check_cache,
    check_generates,
    check_model_path,
    check_weights,
)
from kvik.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kvik.generation import Piece, Settings
    from kvik.model import Model

__all__ = ["generate"]


def generate(
    model: ModelPath,
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", show_default=False, help="Text to continue; - reads it from stdin."
        ),
    ],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="The most tokens to add.")
    ] = 128,
    temperature: Annotated[
        float | None,
        typer.Option(
            show_default="what the file recommends, else 0",
            help="0: always the most likely token; 1: as the model says.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            show_default="what the file recommends, else off",
            help="Draw from the k most likely tokens only.",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            show_default="what the file recommends, else off",
            help="Draw from the fewest tokens whose probabilities reach p, 0 < p <= 1.",
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            show_default="what the file recommends, else off",
            help="Drop tokens less likely than this share of the most likely, 0 to 1.",
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            show_default="what the file recommends, else off",
            help="More than 1 makes tokens that were seen less likely.",
        ),
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=NUMBER", help="Add to the logit of an id; -inf forbids it."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.")
    ] = None,
    stop_id: Annotated[
        list[int] | None,
        typer.Option(help="End before this token id instead of the model's own end-of-text."),
    ] = None,
    no_end: Annotated[
        bool, typer.Option("--no-end", help="Go on past the model's end-of-text tokens.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(show_default="another one each time, reported", help="Of the random numbers."),
    ] = None,
    ids: Annotated[
        bool, typer.Option("--ids", help="PROMPT is token ids, and so is what is printed.")
    ] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt first.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No figures on stderr.")] = False,
    weights: Weights = "f32",
    cache: Cache = "f32",
    threads: Threads = None,
    tokenizer: TokenizerPath = None,
) -> None:
    """Continue a prompt: text to stdout as it comes, speed to stderr.

    Sampling starts from what the file recommends; each option replaces one setting of it.
    """
    from kvik.generation import Settings
    from kvik.loading import load

    if no_end and stop_id:
        raise InvalidArgumentError("--no-end and --stop-id contradict each other; give one of them")
    text = _read_stdin() if prompt == "-" else prompt
    loaded = load(
        check_model_path(model),
        threads=threads,
        tokenizer=tokenizer,
        weights=check_weights(weights),
        cache=check_cache(cache),
    )
    check_generates(loaded, model)
    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    given = {name: value for name, value in sampling.items() if value is not None}
    chosen: dict[str, Any] = loaded.generation_defaults | given
    settings = Settings(
        max_new_tokens=max_new_tokens,
        logit_bias=_parse_bias(logit_bias),
        stop=stop or None,
        stop_ids=() if no_end else stop_id or None,
        seed=secrets.randbits(32) if seed is None else seed,
        **chosen,
    )
    figures = _write(loaded, _parse_ids(text) if ids else text, settings, echo)
    if not quiet:
        print(figures.summary(loaded, settings), file=sys.stderr)


@dataclass
class _Figures:
    """When the tokens of one answer came."""

    prompt_tokens: int
    start: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)  # of every new token
    reason: str = "length"

    def add(self, piece: Piece) -> None:
        if piece.token is not None:
            self.times.append(time.perf_counter())
        if piece.reason is not None:
            self.reason = piece.reason

    def summary(self, model: Model, settings: Settings) -> str:
        parts = [f"{self.prompt_tokens} prompt tokens, {len(self.times)} new"]
        if self.times:
            first = self.times[0] - self.start
            parts.append(f"first after {first * 1e3:.1f} ms ({self.prompt_tokens / first:,.0f}/s)")
        if len(self.times) > 1:
            rate = (len(self.times) - 1) / (self.times[-1] - self.times[0])
            parts.append(f"then {rate:,.1f} tokens/s")
        cache = "" if model.info.cache == "f32" else f", {model.info.cache} cache"
        parts.append(f"{model.info.weights}{cache}, {model.info.threads} threads, {model.info.isa}")
        if settings.temperature:
            parts.append(f"seed {settings.seed}")
        ends = {
            "stop_id": "end of text",
            "stop": "stop string",
            "context": f"context of {model.info.context_length} is full",
        }
        if self.reason in ends:
            parts.append(ends[self.reason])
        return "[" + "; ".join(parts) + "]"


def _write(model: Model, prompt: str | list[int], settings: Settings, echo: bool) -> _Figures:
    """Streams the answer to stdout."""
    _let_through(sys.stdout)
    prompts = model._prompts(prompt)
    run = model._run(prompts, settings)
    if echo:
        _emit(prompt if isinstance(prompt, str) else "".join(f"{item} " for item in prompt))
    figures = _Figures(len(prompts.ids[0]))
    try:
        for piece in run:
            figures.add(piece)
            if prompts.text:
                _emit(piece.text)
            elif piece.token is not None:
                _emit(f"{piece.token} ")
    finally:
        _emit("\n")
    return figures


def _emit(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _let_through(stream: object) -> None:
    """A terminal that lacks a character shows a substitute instead of ending the program."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _read_stdin() -> str:
    if sys.stdin is None:
        raise InvalidArgumentError("stdin is closed: there is no prompt to read")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"stdin is not UTF-8 text: byte {error.start} is wrong"
        ) from error


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(item) for item in text.replace(",", " ").split()]
    except ValueError as error:
        raise InvalidArgumentError(
            f"--ids expects numbers separated by spaces or commas; found {text[:60]!r}"
        ) from error


def _parse_bias(items: list[str] | None) -> dict[int, float] | None:
    if not items:
        return None
    bias = {}
    for item in items:
        key, _, value = item.partition("=")
        try:
            bias[int(key)] = float(value)
        except ValueError as error:
            raise InvalidArgumentError(
                f"--logit-bias expects ID=NUMBER, such as 50256=-inf; found {item!r}"
            ) from error
    return bias
