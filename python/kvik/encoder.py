"""What models that read whole texts are asked: fill in, classify, tag, answer, embed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from kvik import _core
from kvik.arguments import Ids, check_choice, check_count, check_ids
from kvik.errors import InvalidArgumentError, InvalidModelError
from kvik.probabilities import sigmoid, softmax
from kvik.tasks import Answer, Classification, Filling, Tag
from kvik.texts import Framed, Framing
from kvik.tokenizer import Tokenizer, require_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


__all__ = [
    "POOLINGS",
    "Encoder",
    "EncoderMetadata",
    "Pooling",
    "named_scores",
    "read_encoder_metadata",
]

Pooling: TypeAlias = Literal["mean", "cls", "last", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last", "max")

_LABELS = "kvik.labels"  # a JSON list: the labels, in the order of the logits
_MASK_ID = "kvik.mask_token_id"
_POOLING = "kvik.pooling"
_MASKS = ("[MASK]", "<mask>")  # how vocabularies spell it, for files that do not say


@dataclass(frozen=True)
class EncoderMetadata:
    """What a file says about the answers of an encoder."""

    labels: tuple[str, ...] = ()
    mask_id: int | None = None
    pooling: Pooling | None = None  # None: the file does not say


def read_encoder_metadata(metadata: Mapping[str, str], file: Path) -> EncoderMetadata:
    """The entries that concern encoders, all of them checked.

    Raises:
        InvalidModelError: an entry is malformed.
    """

    def wrong(key: str, expected: str) -> InvalidModelError:
        return InvalidModelError(
            f"{file}: metadata {key} must be {expected}; found {metadata[key][:60]!r}"
        )

    labels: list[str] = []
    if _LABELS in metadata:
        try:
            read: object = json.loads(metadata[_LABELS])
        except (ValueError, RecursionError):
            read = None
        if not isinstance(read, list) or not all(isinstance(item, str) for item in read):
            raise wrong(_LABELS, "a JSON list of texts")
        labels = read
    mask = metadata.get(_MASK_ID)
    if mask is not None and not (mask.isascii() and mask.isdigit() and len(mask) < 10):
        raise wrong(_MASK_ID, "a token id")
    mask_id = None if mask is None else int(mask)
    if _POOLING not in metadata:
        return EncoderMetadata(tuple(labels), mask_id)
    for known in POOLINGS:
        if metadata[_POOLING] == known:
            return EncoderMetadata(tuple(labels), mask_id, known)
    raise wrong(_POOLING, f"one of {', '.join(POOLINGS)}")


class Encoder:
    """Answers from the rows that a model gives for whole texts."""

    def __init__(
        self, core: _core.Model, tokenizer: Tokenizer | None, metadata: EncoderMetadata
    ) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._metadata = metadata

    def outputs(
        self, ids: Sequence[Ids], types: Sequence[Ids] | None, id_limit: int
    ) -> dict[str, list[npt.NDArray[np.float32]]]:
        """See Model.encode(); ids below `id_limit` are accepted."""
        info = self._core.info
        for name, value in (("ids", ids), ("types", types)):
            if value is not None and not isinstance(value, (list, tuple)):
                raise InvalidArgumentError(
                    f"{name} must be a list of texts as token ids; found {type(value).__name__}"
                )
        given = types if types is not None else [None] * len(ids)
        if len(given) != len(ids):
            raise InvalidArgumentError(
                f"types must be of as many texts as ids: {len(given)} of {len(ids)}"
            )
        texts = []
        for index, (text, own) in enumerate(zip(ids, given, strict=True)):
            tokens = np.array(check_ids(text, f"ids[{index}]", id_limit), np.int64)
            kinds = None if own is None else np.array(check_ids(own, f"types[{index}]"), np.int64)
            texts.append((tokens, kinds))
        lengths = [len(tokens) for tokens, _ in texts]
        found: dict[str, list[npt.NDArray[np.float32]]] = {}
        if info.incremental:
            if types is not None:
                raise InvalidArgumentError("this model reads no token types")
            every = _core.Logits.ALL
            rows = self._core.forward([(self._core.new_sequence(), t, every) for t, _ in texts])
            found[_hidden_output(info)] = np.split(rows, np.cumsum(lengths)[:-1]) if lengths else []
            return found
        rows = self._core.encode(texts)
        begin = 0
        for name, features in info.encoded:
            part = rows[:, begin : begin + features]
            if info.encoded_per_token:
                found[name] = np.split(part, np.cumsum(lengths)[:-1]) if lengths else []
            else:
                found[name] = list(part)
            begin += features
        return found

    def embed(
        self, texts: Sequence[str], pooling: Pooling | None, normalize: bool, truncate: bool
    ) -> npt.NDArray[np.float32]:
        """Float32 [texts, features]."""
        framing = self._framing()
        framed = [
            framing.text(text, truncate=truncate, where=f"text {index}")
            for index, text in enumerate(texts)
        ]
        if not framed:
            return np.zeros((0, self._features()), np.float32)
        rows = self._run(framed)
        if self._core.info.encoded_per_token or self._core.info.incremental:
            # Of a causal model the last token alone has read the whole text.
            usual: Pooling = "last" if self._core.info.incremental else "mean"
            how = (self._metadata.pooling or usual) if pooling is None else check_choice(
                pooling, "pooling", POOLINGS
            )  # fmt: skip
            vectors = np.stack([_pooled(own, how) for own in self._split(rows, framed)])
        elif pooling is not None:
            raise InvalidArgumentError(
                "the model gives one vector for a text already: leave pooling out"
            )
        else:
            vectors = rows
        return _normalised(vectors) if normalize else vectors

    def classify(
        self, texts: Sequence[str | tuple[str, str]], truncate: bool
    ) -> list[Classification]:
        framing = self._framing()
        framed = []
        for index, text in enumerate(texts):
            where = f"text {index}"
            if isinstance(text, tuple):
                framed.append(framing.pair(*text, truncate=truncate, where=where))
            else:
                framed.append(framing.text(text, truncate=truncate, where=where))
        if not framed:
            return []
        return self.classified(self._run(framed))

    def classified(self, rows: npt.NDArray[np.float32]) -> list[Classification]:
        """What rows of logits, [texts or images, labels], say."""
        labels = self._labels()
        # A single logit says yes or no.
        return named_scores(labels, softmax(rows) if len(labels) > 1 else sigmoid(rows))

    def tag(self, texts: Sequence[str | Sequence[str]]) -> list[list[Tag]]:
        framing, labels = self._framing(), self._labels()
        framed = [
            framing.text(text, truncate=None, where=f"text {index}")
            if isinstance(text, str)
            else framing.words(text, where=f"text {index}")
            for index, text in enumerate(texts)
        ]
        if not framed:
            return []
        found = []
        for text, own, rows in zip(texts, framed, self._split(self._run(framed), framed),
                                   strict=True):  # fmt: skip
            found.append(_tags(text, own, softmax(rows), labels))
        return found

    def answer(self, question: str, context: str, longest: int) -> Answer:
        """The likeliest span of at most `longest` tokens."""
        check_count(longest, "max_answer_tokens", 1)
        whole, parts = self._framing().windows(question, context)
        first = parts[0][0]
        tokens = whole.texts.count(1)
        longest = min(longest, tokens)
        # The sum of the logits of each span, by its first token and its length. Of a span that
        # stands in several parts, the largest.
        spans = np.full((tokens, longest), -np.inf)
        rows = self._split_outputs([part for _, part in parts], ("start_logits", "end_logits"))
        for (begin, part), own in zip(parts, rows, strict=True):
            places = [i for i, text in enumerate(part.texts) if text == 1]
            start, end = own[places].astype(np.float64).T
            for more in range(min(longest, len(places))):
                sums = start[: len(places) - more] + end[more:]
                here = spans[begin - first : begin - first + len(sums), more]
                np.maximum(here, sums, out=here)
        best, length = divmod(int(spans.argmax()), longest)
        top = float(spans[best, length])
        score = 1 / float(np.exp(spans - top).sum())
        begin_char = whole.offsets[first + best][0]
        end_char = whole.offsets[first + best + length][1]
        return Answer(context[begin_char:end_char], score, begin_char, end_char)

    def fill_mask(self, text: str, top: int) -> list[list[Filling]]:
        """For each mask of the text, the `top` likeliest tokens."""
        check_count(top, "top", 1)
        tokenizer, mask_id = require_tokenizer(self._tokenizer), self._mask_id()
        framed = self._framing().text(text, truncate=None)
        places = [int(place) for place in np.flatnonzero(framed.ids == mask_id)]
        mask = tokenizer.token(mask_id)
        if not places:
            raise InvalidArgumentError(
                f"the text has no {mask}: write one where a token is missing"
            )
        rows = self._run([framed])
        found = []
        for place in places:
            scores = softmax(rows[place : place + 1])[0]
            likely = np.argsort(-scores, kind="stable")[:top]
            begin, end = framed.offsets[place]
            found.append([
                Filling(
                    tokenizer.token(int(token)), int(token), float(scores[token]),
                    text[:begin] + _written(tokenizer, int(token)) + text[end:],
                )
                for token in likely
            ])  # fmt: skip
        return found

    # ---- the engine ----------------------------------------------------------------------------

    def _encode(self, framed: Sequence[Framed]) -> npt.NDArray[np.float32]:
        """All outputs, side by side."""
        if self._core.info.incremental:
            every = _core.Logits.ALL
            steps = [(self._core.new_sequence(), own.ids, every) for own in framed]
            return self._core.forward(steps)
        typed = self._core.info.reads_types
        return self._core.encode([(own.ids, own.types if typed else None) for own in framed])

    def _run(self, framed: Sequence[Framed]) -> npt.NDArray[np.float32]:
        """The first output."""
        return self._encode(framed)[:, : self._features()]

    def _features(self) -> int:
        """Elements in a row of the first output."""
        info = self._core.info
        return info.vocab_size if info.incremental else info.encoded[0][1]

    def _split(
        self, rows: npt.NDArray[np.float32], framed: Sequence[Framed]
    ) -> list[npt.NDArray[np.float32]]:
        """The rows of each text."""
        return np.split(rows, np.cumsum([len(own.ids) for own in framed])[:-1])

    def _split_outputs(
        self, framed: Sequence[Framed], names: Sequence[str]
    ) -> list[npt.NDArray[np.float32]]:
        """Of each text float32 [tokens, len(names)]: outputs of one number, by name or in order."""
        have = self._core.info.encoded
        by_name = [name for name, _ in have]
        columns = [by_name.index(name) if name in by_name else place
                   for place, name in enumerate(names)]  # fmt: skip
        if len(have) < len(names) and have[0][1] == len(names):
            columns = list(range(len(names)))  # one output holds them all
        elif len(have) < len(names) or any(size != 1 for _, size in have):
            raise InvalidArgumentError(
                f"answering needs the outputs {' and '.join(names)}; the model gives "
                f"{', '.join(f'{name} [{size}]' for name, size in have)}"
            )
        return self._split(self._encode(framed)[:, columns], framed)

    def _framing(self) -> Framing:
        return Framing(require_tokenizer(self._tokenizer), self._core.info.context_length or None)

    def _labels(self) -> list[str]:
        count = self._core.info.encoded[0][1]
        labels = list(self._metadata.labels) or [f"LABEL_{i}" for i in range(count)]
        if len(labels) != count:
            raise InvalidModelError(
                f"the file's metadata {_LABELS} name {len(labels)} labels; the model has {count}"
            )
        return labels

    def _mask_id(self) -> int:
        if self._metadata.mask_id is not None:
            return self._metadata.mask_id
        for spelling in _MASKS:
            found = require_tokenizer(self._tokenizer).id_of(spelling)
            if found is not None:
                return found
        raise InvalidArgumentError("neither the file nor its tokenizer has a mask token")


def named_scores(
    labels: Sequence[str], probabilities: npt.NDArray[np.float64]
) -> list[Classification]:
    """Of each row of probabilities, [rows, labels], the label and all scores."""
    found = []
    for scores in probabilities:
        best = int(scores.argmax())
        named = dict(zip(labels, map(float, scores), strict=True))
        found.append(Classification(labels[best], float(scores[best]), named))
    return found


def _pooled(rows: npt.NDArray[np.float32], how: str) -> npt.NDArray[np.float32]:
    """[tokens, features] -> [features]."""
    if how in ("cls", "last"):
        return np.asarray(rows[0 if how == "cls" else -1], np.float32)
    return np.asarray(rows.max(axis=0) if how == "max" else rows.mean(axis=0), np.float32)


def _normalised(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: npt.NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
    return found


def _tags(
    text: str | Sequence[str],
    framed: Framed,
    scores: npt.NDArray[np.float64],
    labels: Sequence[str],
) -> list[Tag]:
    """A word has the label of its first token."""
    spans: dict[int, list[int]] = {}
    for place, word in enumerate(framed.words):
        if word is not None and framed.texts[place] is not None:
            spans.setdefault(word, []).append(place)
    found = []
    for word, places in spans.items():
        begin, end = framed.offsets[places[0]][0], framed.offsets[places[-1]][1]
        spelling = text[begin:end] if isinstance(text, str) else text[word]
        best = int(scores[places[0]].argmax())
        found.append(Tag(spelling, labels[best], float(scores[places[0], best]), begin, end))
    if not isinstance(text, str) and len(found) != len(text):
        missing = next(i for i in range(len(text)) if i not in spans)
        raise InvalidArgumentError(f"text[{missing}] is {text[missing]!r}: no token stands for it")
    return found


def _written(tokenizer: Tokenizer, token: int) -> str:
    """As it stands in a text: special tokens too."""
    return tokenizer.decode([token]).strip() or tokenizer.token(token)


def _hidden_output(info: _core.ModelInfo) -> str:
    """The output that an incremental model computes: logits, else the first of floats."""
    names = [item.name for item in info.outputs]
    floats = [item.name for item in info.outputs if item.dtype == "float32"]
    return "logits" if "logits" in names else (floats or names)[0]
