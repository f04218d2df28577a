"""How much each token counted for each other one: the weights of a model's attentions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from kvik.arguments import check_choice, check_count, check_ids
from kvik.errors import InvalidArgumentError
from kvik.texts import Framing
from kvik.tokenizer import Tokenizer, require_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvik import _core

__all__ = [
    "Attender",
    "Attention",
    "AttentionKind",
    "AttentionMap",
    "SessionAttention",
    "check_kind",
    "check_layers",
    "image_maps",
    "read_maps",
    "spell",
]

AttentionKind: TypeAlias = Literal["self", "cross", "source"]


_MOST_LAYERS = (1 << 31) - 1  # that the engine can be asked for; it knows how many there are


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The weights of all layers of one kind.

    ``weights[layer, head, i, j]`` is how much key j counted for query i. A row of them is what the
    softmax gave: it sums to 1, and a key that the query may not see has exactly 0.
    """

    #: Who attends to whom. "self": the tokens of the text to one another, of a translator those of
    #: the target. "cross": the target's tokens to the source's. "source": the source's to one
    #: another.
    kind: AttentionKind
    weights: npt.NDArray[np.float32]  # [layer, head, query, key]
    tokens: list[str]  # that attend, one for each query
    keys: list[str]  # that are attended to
    layers: list[int]  # which of the layers of this kind these are, from 0 on
    names: list[str]  # of the attentions in the graph, one for each layer

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.weights.shape))
        return f"<kvik.AttentionMap: {self.kind}, float32 [{shape}]>"


@dataclass(frozen=True, eq=False)
class SessionAttention:
    """The weights of a graph's attentions of one kind, whose shapes are equal."""

    kind: AttentionKind
    weights: npt.NDArray[np.float32]  # [layer, batch, head, query, key]
    queries: str  # the dimension that counts them, by name or size
    keys: str
    layers: list[int]  # which of the layers of this kind these are, from 0 on
    names: list[str]  # of the attentions in the graph, one for each layer

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.weights.shape))
        return f"<kvik.SessionAttention: {self.kind}, float32 [{shape}]>"


class Attention:
    """The weights of a model's attentions for one text.

    A model of one sequence has one map, whose ``weights``, ``tokens`` and ``keys`` are found here
    as well. A translator has three, ``attention["cross"]``, ``["self"]`` and ``["source"]``; those
    found here are of the cross-attention, its alignments. A model whose layers of a kind differ in
    heads has several maps of the kind, all in ``maps``.
    """

    def __init__(self, maps: Sequence[AttentionMap]) -> None:
        #: All maps, by kind ("self", "cross", "source") and layer.
        self.maps: tuple[AttentionMap, ...] = tuple(maps)
        crosses = [own for own in self.maps if own.kind == "cross"]
        self._main = (crosses or self.maps)[0]

    def __getitem__(self, kind: AttentionKind) -> AttentionMap:
        """The map of a kind.

        Raises:
            InvalidArgumentError: There is none, or there are several.
        """
        found = [own for own in self.maps if own.kind == kind]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidArgumentError(
                f"the {kind} layers differ in shape and have {len(found)} maps: see .maps"
            )
        kinds = ", ".join(dict.fromkeys(own.kind for own in self.maps))
        raise InvalidArgumentError(f"there is no {kind!r} attention here; there is {kinds}")

    def __iter__(self) -> Iterator[AttentionMap]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def kind(self) -> AttentionKind:
        """Of the map that the properties below are of."""
        return self._main.kind

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """Float32 [layer, head, query, key]."""
        return self._main.weights

    @property
    def tokens(self) -> list[str]:
        """The tokens that attend: the queries."""
        return self._main.tokens

    @property
    def keys(self) -> list[str]:
        """The tokens that are attended to."""
        return self._main.keys

    @property
    def layers(self) -> list[int]:
        """Which of the layers of this kind these are."""
        return self._main.layers

    @property
    def names(self) -> list[str]:
        """The names of the layers' attentions in the graph."""
        return self._main.names

    def __repr__(self) -> str:
        maps = "; ".join(
            f"{own.kind} [{' x '.join(map(str, own.weights.shape))}]" for own in self.maps
        )
        return f"<kvik.Attention: {maps}>"


def check_kind(kind: object) -> AttentionKind | None:
    """One of the kinds, or None."""
    if kind is None:
        return None
    return check_choice(kind, "kind", get_args(AttentionKind))  # type: ignore[return-value]


def check_layers(layers: object) -> list[int]:
    """Layers as a list; None: all of them, as an empty one says."""
    if layers is None:
        return []
    several = [layers] if isinstance(layers, (int, np.integer)) else layers
    if isinstance(several, (str, bytes)) or not isinstance(several, Iterable):
        raise InvalidArgumentError(
            f"layers must be an integer or a list of them; found {type(layers).__name__}"
        )
    checked = [check_count(layer, "layers", 0, _MOST_LAYERS) for layer in several]
    if not checked:
        raise InvalidArgumentError("layers is empty: leave it out for all of them")
    return sorted(set(checked))


def spell(tokenizer: Tokenizer | None, token: int) -> str:
    """A token as it reads in a text, its spaces too: " the"; "[CLS]" of a special one.

    One that is no whole characters has its vocabulary's own spelling.
    """
    if tokenizer is None:
        return f"<id {token}>"
    own = tokenizer.token(token)
    text = str(tokenizer.raw.decode([token], skip_special_tokens=False))
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return " " if own in ("\N{LOWER ONE EIGHTH BLOCK}", "Ġ") else own
    if own.startswith("##"):
        return own  # what joins it to the token before it says something
    marked = own.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ")
    return " " + text if marked else text


def read_maps(
    groups: Sequence[_core.AttentionWeights],
    tokens: dict[str, tuple[list[str], list[str]]],
) -> Attention:
    """The engine's weights with their tokens: by kind those of queries and of keys."""
    return Attention([
        AttentionMap(
            group.kind,  # type: ignore[arg-type]
            group.weights, *tokens[group.kind], list(group.layers), group.names,
        )
        for group in groups
    ])  # fmt: skip


def image_maps(found: Sequence[SessionAttention]) -> Attention:
    """Of one image, whose parts are named by row and column."""
    maps = []
    for own in found:
        queries, keys = own.weights.shape[-2:]
        maps.append(
            AttentionMap(
                own.kind, own.weights[:, 0], _parts(queries), _parts(keys), own.layers, own.names
            )
        )
    return Attention(maps)


def _parts(count: int) -> list[str]:
    """Names of the parts of a square image, by row and column, a class token before them."""
    side = math.isqrt(count)
    if count - side * side > 1:
        return [str(index) for index in range(count)]
    places = range(1, side + 1)
    first = ["class"] * (count - side * side)
    return first + [f"{row},{column}" for row in places for column in places]


class Attender:
    """Asks the engine for weights, and says whose they are."""

    def __init__(self, core: _core.Model, tokenizer: Tokenizer | None) -> None:
        self._core = core
        self._tokenizer = tokenizer

    def framed(
        self, text: object, truncate: bool, what: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """Ids and types of a text, of a pair of texts, or of ids, for a model that reads it whole.

        Raises:
            InvalidArgumentError: it is none of them, or too long.
        """
        info = self._core.info
        two = info.two_sequences
        limit = info.source_length if two else info.context_length
        if isinstance(text, str) or (isinstance(text, tuple) and _are_texts(text)):
            tokenizer = require_tokenizer(self._tokenizer, instead="pass token ids")
            framing = Framing(tokenizer, limit or None)
            if isinstance(text, str):
                framed = framing.text(text, truncate=truncate, where=what)
            elif two or len(text) != 2:
                raise InvalidArgumentError(
                    f"{what} must be one text" + ("" if two else " or two")
                    + f"; found {len(text)} texts"
                )  # fmt: skip
            else:
                framed = framing.pair(*text, truncate=truncate, where=what)
            return framed.ids, framed.types if info.reads_types else None
        ids = check_ids(text, what, info.source_limit if two else info.token_limit)
        if not ids:
            raise InvalidArgumentError(f"{what} is empty: pass at least one token")
        return np.array(ids, np.int64), None

    def of_text(
        self,
        ids: npt.NDArray[np.int64],
        types: npt.NDArray[np.int64] | None,
        layers: list[int],
    ) -> Attention:
        groups = self._core.attention(ids, types, layers=layers)
        tokens = self._spelled(ids)
        return read_maps(groups, {"self": (tokens, tokens)})

    def of_pair(
        self,
        source: npt.NDArray[np.int64],
        target: npt.NDArray[np.int64],
        kind: AttentionKind | None,
        layers: list[int],
    ) -> Attention:
        groups = self._core.attention(source, target=target, kind=kind, layers=layers)
        keys, tokens = self._spelled(source), self._spelled(target)
        return read_maps(
            groups, {"self": (tokens, tokens), "cross": (tokens, keys), "source": (keys, keys)}
        )

    def _spelled(self, ids: npt.NDArray[np.int64]) -> list[str]:
        return [spell(self._tokenizer, int(token)) for token in ids]


def _are_texts(values: tuple[object, ...]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)
