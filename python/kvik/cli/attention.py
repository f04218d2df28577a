"""`kvik attention`: a picture of how much each token counts for each other one."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

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

if TYPE_CHECKING:
    from kvik.attention import Attention, AttentionKind, AttentionMap
    from kvik.draw.heat import HeatSheet
    from kvik.model import Model

__all__ = ["attention"]

_SUFFIXES = (".png", ".svg")
_ROWS = "rows: the token that attends; columns: the token attended to"
# What each kind is called, and what its rows and columns are.
_KINDS = {
    "self": ("self-attention", _ROWS),
    "cross": (
        "cross-attention",
        "rows: the target token read last; columns: the source tokens attended to",
    ),
    "source": ("attention within the source", _ROWS),
}
_PARTS = "rows: the part of the image that attends; columns: the part attended to"


def attention(
    model: ModelPath,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            show_default=False,
            help="A text; of a translator the source, of a model of images the path of one.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", show_default=False, help="The picture: .png or .svg.")
    ],
    target: Annotated[
        str | None,
        typer.Option(show_default="the model's own translation", help="Of a translator."),
    ] = None,
    pair: Annotated[
        str | None, typer.Option(help="A second text, for a model that reads two.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            show_default="cross", help="Of a translator: cross, self (the target's) or source."
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer", "-l", min=0, show_default="all", help="One layer: all of its heads."
        ),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option("--head", min=0, show_default="their mean", help="One head."),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut a text that is longer than the model reads.")
    ] = False,
    weights: Weights = "f32",
    threads: Threads = None,
    tokenizer: TokenizerPath = None,
) -> None:
    """Draw the attention weights of a text: tokens on both axes, a panel for each layer.

    Without options the panels are the means over the heads. --layer shows all heads of a layer,
    --head one head of every layer, both together one map, the largest.
    """
    from kvik.draw.heat import lay_out_heat, pick_panels
    from kvik.loading import load

    _check_out(out)
    path = check_model_path(model)
    precision = check_weights(weights)
    if kind is not None and kind not in _KINDS:
        raise InvalidArgumentError(f"--kind must be {', '.join(_KINDS)}; found {kind!r}")
    wanted = cast("AttentionKind | None", kind)
    loaded = load(path, threads=threads, tokenizer=tokenizer, weights=precision)
    found = _of_model(loaded, text, pair, target, wanted, layer, truncate)
    legend = _PARTS if loaded.task == "classify_image" else None
    maps = _chosen(found, wanted)
    panels, how = pick_panels(maps, layer, head)
    name, rows = _KINDS[maps[0].kind]
    title = f"{path.name}: {name}, {how}"
    sheet = lay_out_heat(panels, maps[0].tokens, maps[0].keys, title, legend or rows)
    _write(out, sheet)
    shape = f"{len(maps[0].tokens)} x {len(maps[0].keys)}"
    print(f"wrote {out}: {name}, {how}, {shape} tokens")


def _check_out(out: Path) -> None:
    """Before anything is computed."""
    if out.suffix.lower() not in _SUFFIXES:
        raise InvalidArgumentError(f"--out writes .png or .svg; found {str(out)!r}")
    if not out.parent.is_dir():
        raise FileError(f"can't write {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise FileError(f"can't write {out}: it is a folder")


def _of_model(
    model: Model,
    text: str,
    pair: str | None,
    target: str | None,
    kind: AttentionKind | None,
    layer: int | None,
    truncate: bool,
) -> Attention:
    two = model.task == "translate"
    if target is not None and not two:
        raise InvalidArgumentError(f"--target is for translators; this model's task: {model.task}")
    if kind not in (None, "self") and not two:
        raise InvalidArgumentError(f"--kind is for translators; this model's task: {model.task}")
    if pair is not None and (two or model.task in ("generate", "classify_image")):
        raise InvalidArgumentError(
            f"--pair is for models that read two texts; this model's task: {model.task}"
        )
    return model.attention(
        text if pair is None else (text, pair), target,
        kind=(kind or "cross") if two else None, layers=layer, truncate=truncate,
    )  # fmt: skip


def _chosen(found: Attention, kind: AttentionKind | None) -> list[AttentionMap]:
    """The maps of one kind: layers of different shapes have several."""
    return [own for own in found if own.kind == (kind or found.kind)]


def _write(out: Path, sheet: HeatSheet) -> None:
    """All of the picture or nothing of it: what was there before is not lost half-way."""
    if out.suffix.lower() == ".svg":
        from kvik.draw.heat_svg import render_heat_svg

        data = render_heat_svg(sheet).encode()
    else:
        from kvik.draw.heat_png import render_heat_png

        data = render_heat_png(sheet)
    if out.exists() and not os.access(out, os.W_OK):
        raise FileError(f"can't write {out}: it is read-only")
    if out.exists() and not out.is_file():  # /dev/stdout, a pipe
        out.write_bytes(data)
        return
    beside = None
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(beside).chmod(out.stat().st_mode if out.exists() else 0o666 & ~_umask())
        Path(beside).replace(out)
    except OSError as error:
        if beside is not None:
            with suppress(OSError):
                Path(beside).unlink()
        raise FileError(f"can't write {out}: {error.strerror}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
