"""Whether the engines chose the right tokens.

In f32 every engine must choose the tokens of onnxruntime on the plain export, but for ties; in low
precision it is only said where an engine leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.entries import find
from benchmarks.results import Entry, leading_same
from kvik.bench.ties import is_tie

# (model, new tokens so far, token, other token) -> how far the first's logit is above the other's;
# None: nobody can say.
Gap = Callable[[str, list[int], int, int], float | None]


def check_tokens(entries: Sequence[Entry], model: str, threads: int, gap: Gap) -> None:
    """Fills in same_tokens, reference and, for f32, status "wrong"."""
    references = _references(entries, model, threads)
    for entry in entries:
        if entry.model != model or entry.threads != threads or not entry.tokens:
            continue
        reference = next((one for one in references if one is not entry), None)
        if reference is None:
            continue
        same, count = leading_same(entry.tokens, reference.tokens)
        entry.same_tokens, entry.compared_tokens = same, count
        entry.reference = reference.engine
        if same < count and entry.precision == "f32":
            _judge(entry, reference, same, gap)


def _judge(entry: Entry, reference: Entry, at: int, gap: Gap) -> None:
    theirs, own = reference.tokens[at], entry.tokens[at]
    ahead = gap(entry.model, entry.tokens[:at], theirs, own)
    if ahead is not None and is_tie(abs(ahead)):
        entry.tie = True
        return
    entry.status = "wrong"
    detail = "" if ahead is None else f"; {theirs} is {ahead:.2g} ahead by onnxruntime's logits"
    entry.reason = f"token {at} is {own}; {reference.engine} has {theirs}{detail}"


def _references(entries: Sequence[Entry], model: str, threads: int) -> list[Entry]:
    """f32 runs, the best first: onnxruntime with more tokens; kvik only where there is none."""
    names = ("onnxruntime", "onnxruntime-cache", "kvik")
    found = [find(entries, model, name, "f32", threads) for name in names]
    usable = [entry for entry in found if entry is not None and entry.tokens]
    return sorted(usable, key=lambda one: (one.engine == "kvik", -len(one.tokens)))
