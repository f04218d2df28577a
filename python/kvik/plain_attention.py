"""Attention of files that kvik.load does not take: of images, and what a session alone can run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvik.attention import Attention, AttentionMap, spell
from kvik.errors import FileError, InvalidArgumentError, UnsupportedError
from kvik.metadata import end_ids, read_metadata
from kvik.texts import Framing
from kvik.tokenizer import find_tokenizer
from kvik.translation import read_start_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvik.attention import AttentionKind, SessionAttention
    from kvik.session import InferenceSession
    from kvik.tokenizer import TokenizerLike

__all__ = ["image_attention", "pair_attention", "reads_images", "reads_pairs"]

_SOURCE, _MASK, _TARGET = "source_ids", "source_mask", "target_ids"
_CONTEXT = "kvik.context_length"
_IMAGE = "kvik.image"


def reads_images(session: InferenceSession) -> bool:
    """Whether its one input is a batch of images."""
    inputs = session.get_inputs()
    return len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].type == "tensor(float)"


def reads_pairs(session: InferenceSession) -> bool:
    """Whether it takes the source and the target of a translation."""
    names = {item.name for item in session.get_inputs()}
    return {_SOURCE, _TARGET} <= names <= {_SOURCE, _MASK, _TARGET}


def image_attention(session: InferenceSession, path: Path, layers: int | None) -> Attention:
    """How much each part of an image counted for each other one.

    Raises:
        FileError: the image can't be read.
        UnsupportedError: there is no attention, or no Pillow to read the image with.
    """
    feeds = {session.get_inputs()[0].name: _read_image(path, session)}
    found = session.attention(feeds, layers=layers)
    return Attention([_named(own, *map(_parts, own.weights.shape[-2:])) for own in found])


def pair_attention(
    session: InferenceSession,
    file: Path,
    tokenizer: TokenizerLike | None,
    source: str,
    target: str | None,
    kind: AttentionKind | None,
    layers: int | None,
    *,
    truncate: bool = False,
) -> Attention:
    """Of a translator; without a target, of the one that greedy decoding gives."""
    own = find_tokenizer(file, session.metadata, tokenizer)
    if own is None:
        raise InvalidArgumentError(
            "the model has no tokenizer: pass one with --tokenizer (a tokenizer.json)"
        )
    limit = _limit(session.metadata)
    start = read_start_id(session.metadata, file)
    if start is None:
        start = own.id_of("<s>")
    if start is None:
        raise InvalidArgumentError("the file does not say with which id targets begin")
    sources = Framing(own, limit).text(source, truncate=truncate, where="the source").ids
    if target is None:
        ends = end_ids(read_metadata(session.metadata, own.vocab_size, file), own, own.vocab_size)
        targets = _greedy(session, sources, start, set(ends), limit or 2 * len(sources) + 16)
    else:
        targets = np.array([start, *own.frame(target, special=False).ids], np.int64)
        if limit is not None and len(targets) > limit:
            raise InvalidArgumentError(
                f"the target has {len(targets)} tokens, more than the {limit} that the model reads"
            )
    found = session.attention(_feeds(session, sources, targets), kind=kind, layers=layers)
    keys = [spell(own, int(token)) for token in sources]
    tokens = [spell(own, int(token)) for token in targets]
    named = {"self": (tokens, tokens), "cross": (tokens, keys), "source": (keys, keys)}
    return Attention([_named(group, *named[group.kind]) for group in found])


def _named(found: SessionAttention, tokens: list[str], keys: list[str]) -> AttentionMap:
    if found.weights.shape[-2:] != (len(tokens), len(keys)):
        raise UnsupportedError(
            f"the attention '{found.names[0]}' has {found.weights.shape[-2]} x "
            f"{found.weights.shape[-1]} weights for {len(tokens)} and {len(keys)} tokens"
        )
    return AttentionMap(found.kind, found.weights[:, 0], tokens, keys, found.layers, found.names)


def _parts(count: int) -> list[str]:
    """Names of the parts of a square image, by row and column, a class token before them."""
    side = math.isqrt(count)
    if count - side * side > 1:
        return [str(index) for index in range(count)]
    places = range(1, side + 1)
    first = ["class"] * (count - side * side)
    return first + [f"{row},{column}" for row in places for column in places]


def _limit(metadata: Mapping[str, str]) -> int | None:
    text = metadata.get(_CONTEXT, "")
    return int(text) if text.isascii() and text.isdigit() else None


def _feeds(
    session: InferenceSession, source: npt.NDArray[np.int64], target: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.int64]]:
    feeds = {_SOURCE: source[None], _MASK: np.ones_like(source)[None], _TARGET: target[None]}
    return {item.name: feeds[item.name] for item in session.get_inputs()}


def _greedy(
    session: InferenceSession,
    source: npt.NDArray[np.int64],
    start: int,
    ends: set[int],
    limit: int,
) -> npt.NDArray[np.int64]:
    target = np.array([start], np.int64)
    name = session.get_outputs()[0].name
    while len(target) < limit:
        [logits] = session.run([name], _feeds(session, source, target))
        token = int(logits[0, -1].argmax())
        if token in ends:
            break
        target = np.append(target, token)
    return target


def _read_image(path: Path, session: InferenceSession) -> npt.NDArray[np.float32]:
    """Float32 [1, channels, height, width], as the model expects it."""
    shape = session.get_inputs()[0].shape
    form: dict[str, Any] = json.loads(session.metadata.get(_IMAGE, "{}"))
    size: list[Any] = form.get("size", shape[2:])
    channels: Any = form.get("channels", shape[1])
    if not all(isinstance(number, int) for number in (*size, channels)):
        raise InvalidArgumentError("neither the file nor its input says how large its images are")
    pixels = _load_pixels(path, channels, (size[1], size[0]))
    mean, std = (
        np.reshape(np.array(form.get(key, default), np.float32), (-1, 1, 1))
        for key, default in (("mean", 0.0), ("std", 1.0))
    )
    found: npt.NDArray[np.float32] = ((pixels - mean) / std)[None].astype(np.float32)
    return found


def _load_pixels(path: Path, channels: int, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Float32 [channels, height, width], from 0 to 1."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UnsupportedError("reading images needs Pillow: pip install pillow") from error
    if channels not in (1, 3):
        raise UnsupportedError(f"the model reads images of {channels} channels; expected 1 or 3")
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if channels == 1 else "RGB").resize(size)
    except FileNotFoundError:
        raise FileError(f"no such image: {path}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FileError(f"{path} is no image that can be read: {error}") from error
    except OSError as error:
        raise FileError(f"can't read the image {path}: {error.strerror or error}") from error
    pixels = np.asarray(image, np.float32) / np.float32(255)
    found: npt.NDArray[np.float32] = pixels.reshape(size[1], size[0], channels).transpose(2, 0, 1)
    return found
