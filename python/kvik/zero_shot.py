"""Classification by a model that generates: which of a few labels it would rather go on with.

Radford et al. 2018, section 5, restrict a language model to label words in this way; normalising
by a label's own probability is domain conditional PMI, Holtzman et al. 2021, arXiv:2104.08315.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from kvik import _core
from kvik.arguments import check_choice, check_names
from kvik.encoder import named_scores
from kvik.errors import InvalidArgumentError
from kvik.probabilities import log_softmax
from kvik.tokenizer import Tokenizer, require_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvik.tasks import Classification

__all__ = ["TEMPLATE", "LabelScorer", "Normalization"]

Normalization: TypeAlias = Literal["none", "length", "prior"]
TEMPLATE = "{text} {label}"
_ROWS = 256  # rows of logits held at once: 256 · vocabulary · 4 bytes


class LabelScorer:
    """Scores labels as continuations of texts.

    Args:
        limit: Tokens that a sequence may have; None: any number.
        end_ids: Ids that end a text: after one, a text begins.
    """

    def __init__(
        self,
        core: _core.Model,
        tokenizer: Tokenizer | None,
        limit: int | None,
        end_ids: tuple[int, ...],
    ) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._limit = limit
        self._end_ids = end_ids

    def classify(
        self,
        texts: Sequence[str],
        labels: object,
        template: str,
        normalization: str,
        truncate: bool,
    ) -> list[Classification]:
        names = check_names(labels, "labels")
        if len(names) < 2 or len(set(names)) < len(names) or "" in names:
            raise InvalidArgumentError(
                f"labels must be two different texts at least, none empty; found {names!r:.200}"
            )
        check_choice(normalization, "normalization", get_args(Normalization))
        _check_template(template)
        prior = None
        if normalization == "prior":
            rendered = [self._ids(_render(template, "", label)) for label in names]
            prior, _ = self._log_likelihoods(rendered, "the template without a text")
        rows = np.zeros((len(texts), len(names)))
        for number, text in enumerate(texts):
            where = f"text {number}"
            found = self._fitting(text, names, template, truncate, where)
            rows[number], counts = self._log_likelihoods(found, where)
            if normalization == "length":
                rows[number] /= counts
            if prior is not None:
                rows[number] -= prior
        shares = np.exp(rows - rows.max(axis=1, keepdims=True, initial=-np.inf))
        return named_scores(names, shares / shares.sum(axis=1, keepdims=True))

    def _fitting(
        self, text: str, labels: Sequence[str], template: str, truncate: bool, where: str
    ) -> list[list[int]]:
        """The ids of the text with each label, of a text that was cut until all of them fit."""
        while True:
            found = [self._ids(_render(template, text, label)) for label in labels]
            longest = max(map(len, found))
            excess = 0 if self._limit is None else longest - self._limit
            if excess <= 0:
                return found
            if not truncate:
                raise InvalidArgumentError(
                    f"{where} has {longest} tokens with its label, more than the {self._limit} "
                    "that the model reads at once: shorten it, or pass truncate=True"
                )
            ids = self._ids(text)
            if not ids:
                raise InvalidArgumentError(
                    f"the template and a label alone have {longest} tokens, more than the "
                    f"{self._limit} that the model reads at once"
                )
            # One token less at least, also where a text is not quite what its ids spell.
            shorter = require_tokenizer(self._tokenizer).decode(ids[: max(0, len(ids) - excess)])
            text = shorter if len(shorter) < len(text) else text[:-1]

    def _log_likelihoods(
        self, sequences: Sequence[Sequence[int]], where: str
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Of each sequence log p(what it does not share with the others | what it does), [labels].

        And how many tokens that is. What all begin with would add the same to each, so ids need not
        be cut where the label begins, which no tokenizer promises to do.
        """
        shared = _shared(sequences)
        if shared == 0:
            # A text begins where another one ended.
            if not self._end_ids:
                raise InvalidArgumentError(
                    f"{where}: the labels begin with different tokens and nothing stands before "
                    "them; begin the template with a word, as in 'Topic: {label}'"
                )
            sequences = [[self._end_ids[0], *ids] for ids in sequences]
            shared = 1
        counts = np.array([len(ids) - shared for ids in sequences])
        if not counts.all():
            # One label goes on where another stops: say that it stops.
            if not self._end_ids:
                raise InvalidArgumentError(
                    f"{where}: one label is the beginning of another; end the template with a mark "
                    "after {label}, as in '{text} {label}.'"
                )
            sequences = [[*ids, self._end_ids[0]] for ids in sequences]
            counts = counts + 1
        root = self._core.new_sequence()
        head = np.asarray(sequences[0][:shared], np.int64)
        first = log_softmax(self._core.forward([(root, head, _core.Logits.LAST)]))[0]
        totals = np.array([first[ids[shared]] for ids in sequences], np.float64)
        # All but the last token of each: the logits after it say nothing of the label.
        tails = [(i, ids) for i, ids in enumerate(sequences) if len(ids) - shared > 1]
        while tails:
            part = [tails.pop()]
            while tails and sum(len(ids) - shared for _, ids in [*part, tails[-1]]) <= _ROWS:
                part.append(tails.pop())
            steps = [
                (root.fork(), np.asarray(ids[shared:-1], np.int64), _core.Logits.ALL)
                for _, ids in part
            ]
            logits = log_softmax(self._core.forward(steps))
            begin = 0
            for number, ids in part:
                wanted = ids[shared + 1 :]
                rows = logits[begin : begin + len(wanted)]
                totals[number] += rows[np.arange(len(wanted)), wanted].sum()
                begin += len(wanted)
        return totals, counts

    def _ids(self, text: str) -> list[int]:
        return require_tokenizer(self._tokenizer).encode(text)


def _check_template(template: object) -> None:
    """It has {text} and {label} once each, and no other field."""
    if not isinstance(template, str):
        raise InvalidArgumentError(f"template must be a text; found {type(template).__name__}")
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise InvalidArgumentError(f"template is {template!r}: {error}") from error
    plain = all(not spec and not conversion for _, spec, conversion in parts)
    if not plain or sorted(str(name) for name, _, _ in parts) != ["label", "text"]:
        raise InvalidArgumentError(
            f"template is {template!r}; expected a text with {{text}} and {{label}} once each, "
            f"such as {TEMPLATE!r}"
        )


def _render(template: str, text: str, label: str) -> str:
    return template.format(text=text, label=label)


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all begin with."""
    count = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count
