"""Verification that torch, onnxruntime and kvik compute the same from one exported file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvik_export.bisect import Divergence, first_divergence
from kvik_export.compare import Difference, GreedyResult, compare_greedy, difference
from kvik_export.engines import (
    Engine,
    Ids,
    Logits,
    by_prefix,
    onnxruntime_engine,
    onnxruntime_session,
    token_input,
    torch_engine,
)
from kvik_export.errors import ExportError, first_line

if TYPE_CHECKING:
    import kvik

# Read when the model has a tokenizer. Code, prose, and characters that take several bytes.
TEXTS = (
    "def main(arguments: list[str]) -> int:\n    return 0\n",
    "It was the best of times, it was the worst of times",
    "Blåbærsyltetøy, 東京, naïve café: 3.14159 ≈ π",
)
GREEDY_STEPS = 256
LENGTH = 48  # tokens of a prompt whose every prefix is computed
# The ways in which logits are computed, each compared with onnxruntime's.
TORCH = "torch"
AT_ONCE, BY_TOKEN = "kvik, prompt at once", "kvik, token by token"
UNCACHED = "kvik without a cache"
_UNKNOWN_CONTEXT = 512  # the most tokens tried where nothing bounds a sequence


@dataclass(frozen=True)
class Prompt:
    kind: str  # "random" or "text"
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Check:
    """One row of the table: a comparison over all prompts of a kind."""

    what: str
    prompts: str
    compared: str  # e.g. "96 rows", "256 tokens"
    error: float | None  # the largest, scaled; None where bits or tokens are compared
    ok: bool
    note: str = ""
    skipped: bool = False  # an engine that cannot run the file


@dataclass
class Verification:
    path: Path
    incremental: bool | None  # None: nobody asked
    checks: list[Check] = field(default_factory=list)
    divergence: Divergence | None = None
    explanation: str = ""  # of a mismatch that no single node accounts for

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def largest_error(self) -> float:
        return max((check.error for check in self.checks if check.error is not None), default=0.0)


def verify_model(
    path: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    texts: Sequence[str] = TEXTS,
    length: int = LENGTH,
    greedy_steps: int = GREEDY_STEPS,
    threads: int | None = None,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Compare kvik, and torch where a checkpoint is given, with onnxruntime on the same file.

    Every row of logits is compared with a run of onnxruntime over that row's prefix alone; kvik
    computes it with its cache filled at once, with its cache filled token by token, and without.
    Greedy tokens are compared over `greedy_steps`, or to the end of the context. Where nothing
    says how long that is, onnxruntime is asked which lengths it runs.

    Args:
        path: a plain forward, token ids -> logits.
        checkpoint: the training run that it was exported from.
        texts: real prompts; left out when the model has no tokenizer.
        length: tokens of each prompt at most.
        on_step: told what is being done, for a progress line.

    Raises:
        ExportError: the file is not a plain forward, or an option is impossible.
        kvik.KvikError: kvik cannot load or run the file.
    """
    import kvik

    if length < 1 or greedy_steps < 0:
        raise ExportError("length must be at least 1 and the greedy steps at least 0")
    file = Path(path)
    model = kvik.load(file, threads=threads)
    if any(matrix.stored for matrix in model._core.matrices()):
        raise ExportError(
            f"{file} has integer weights, with which kvik rounds the inputs of layers too and "
            "onnxruntime does not: verify the float32 file that it was made from"
        )
    onnxruntime = onnxruntime_engine(file, threads)
    limit = _find_limit(model, onnxruntime, length + greedy_steps)
    prompts = make_prompts(model, texts, min(length, limit.length), seed)
    verification = Verification(file, model.info.incremental)
    comparison = _Comparison(
        model=model,
        onnxruntime=onnxruntime,
        torch=torch_engine(Path(checkpoint)) if checkpoint else None,
        verification=verification,
        on_step=on_step,
    )
    for kind in dict.fromkeys(prompt.kind for prompt in prompts):
        chosen = [prompt.ids for prompt in prompts if prompt.kind == kind]
        comparison.logits(kind, chosen)
        comparison.greedy(kind, chosen[-1], greedy_steps, limit)
    if not verification.ok:
        on_step("looking for the first node that differs")
        _explain(verification, max((prompt.ids for prompt in prompts), key=len))
    return verification


def make_prompts(model: kvik.Model, texts: Sequence[str], length: int, seed: int) -> list[Prompt]:
    """Random ids of several lengths, then texts."""
    generator = np.random.default_rng(seed)
    vocab = model.info.vocab_size
    sizes = sorted({1, min(2, length), min(17, length), length})
    prompts = [
        Prompt("random", tuple(map(int, generator.integers(0, vocab, size)))) for size in sizes
    ]
    if model.tokenizer is not None:
        for text in texts:
            ids = tuple(model.tokenizer.encode(text)[:length])
            prompts += [Prompt("text", ids)] if ids else []
    return prompts


@dataclass(frozen=True)
class Limit:
    """The longest sequence that is tried."""

    length: int
    reason: str  # why comparing ends there


def _find_limit(model: kvik.Model, onnxruntime: Engine, wanted: int) -> Limit:
    context = model.info.context_length
    if context is not None:
        return Limit(context, f"context of {context}")
    most = min(wanted, _UNKNOWN_CONTEXT)
    # The proof of an incremental model would have found the end of a table of positions.
    found = most if model.info.incremental else longest_length(onnxruntime, most)
    if found < most:
        return Limit(found, f"to {found} tokens, the most that onnxruntime runs")
    return Limit(most, f"to {most} tokens")


def longest_length(engine: Engine, most: int) -> int:
    """The longest sequence, of at most `most` tokens, that the engine runs."""

    def failure(length: int) -> Exception | None:
        try:
            engine([0] * length)
        except Exception as error:  # onnxruntime's exceptions have no public base
            return error
        return None

    if failure(most) is None:
        return most
    if (error := failure(1)) is not None:
        raise ExportError(f"onnxruntime cannot run one token: {first_line(error)}") from error
    low, high = 1, most  # the first runs, the second does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if failure(middle) is None else (low, middle)
    return low


@dataclass
class _Comparison:
    model: kvik.Model
    onnxruntime: Engine
    torch: Engine | None
    verification: Verification
    on_step: Callable[[str], None]
    rows_are_prefixes: bool = True  # of onnxruntime's logits, as far as it has been seen

    def logits(self, kind: str, prompts: list[tuple[int, ...]]) -> None:
        self.on_step(f"onnxruntime, every prefix ({kind})")
        reference = [by_prefix(self.onnxruntime, ids) for ids in prompts]
        whole = [self.onnxruntime(ids) for ids in prompts]
        self.rows_are_prefixes = self.rows_are_prefixes and _worst(whole, reference).ok
        compared = f"{sum(map(len, prompts))} rows"
        found: dict[str, list[Logits]] = {}
        for name, run in self._ways().items():
            self.on_step(f"{name} ({kind})")
            found[name] = [run(ids) for ids in prompts]
            worst = _worst(found[name], reference)
            note = "" if worst.ok else f"row {worst.row}, token {worst.token}"
            self._add(name, kind, compared, worst.error, worst.ok, note)
        equal = all(
            _same_bits(rows, uncached)
            for name in (AT_ONCE, BY_TOKEN)
            for rows, uncached in zip(found[name], found[UNCACHED], strict=True)
        )
        self._add("kvik cached = uncached, bits", kind, compared, None, equal)

    def _ways(self) -> dict[str, Callable[[Ids], Logits]]:
        """The computations that are compared with onnxruntime's, by name."""
        ways: dict[str, Callable[[Ids], Logits]] = {}
        if self.torch is not None:
            ways[TORCH] = partial(by_prefix, self.torch)
        ways[AT_ONCE] = self.model.logits
        ways[BY_TOKEN] = partial(self.model.logits, chunk=1)
        ways[UNCACHED] = partial(self.model.logits, cache=False)
        return ways

    def greedy(self, kind: str, prompt: tuple[int, ...], steps: int, limit: Limit) -> None:
        """After as much of the prompt as leaves three quarters of the limit to compare."""
        start = prompt[: max(1, min(len(prompt), limit.length // 4))]
        count = min(steps, limit.length - len(start))
        self.on_step(f"greedy tokens ({kind})")
        tokens = self.model.generate(start, max_new_tokens=count, temperature=0.0, stop_ids=())
        result = compare_greedy(
            tokens, start, self.onnxruntime, rows_are_prefixes=self.rows_are_prefixes
        )
        complete = len(tokens) == count
        note = _greedy_note(result) if complete else f"kvik stopped after {len(tokens)} of {count}"
        if complete and count < steps:
            note = f"{note}, {limit.reason}" if note else limit.reason
        self._add("greedy tokens", kind, f"{len(tokens)} tokens", None,
                  result.ok and complete, note)  # fmt: skip

    def _add(
        self, what: str, prompts: str, compared: str, error: float | None, ok: bool, note: str = ""
    ) -> None:
        self.verification.checks.append(Check(what, prompts, compared, error, ok, note))


def _worst(found: list[Logits], reference: list[Logits]) -> Difference:
    return max(map(difference, found, reference), key=lambda item: item.error)


def _same_bits(a: Logits, b: Logits) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _greedy_note(result: GreedyResult) -> str:
    if result.mismatch is not None:
        return f"step {result.mismatch}: another token, {result.gap:.3g} below the best"
    return f"{result.ties} near ties" if result.ties else ""


def _explain(verification: Verification, ids: tuple[int, ...]) -> None:
    """Name the node at fault, or say that the fault is not in a node."""
    import kvik

    path = verification.path
    session = onnxruntime_session(str(path))
    feeds = {token_input(session, path): np.asarray([ids], dtype=np.int64)}
    try:
        verification.divergence = first_divergence(path, feeds)
    except kvik.KvikError as error:
        verification.explanation = f"the nodes could not be compared: {error}"
        return
    if verification.divergence is None:
        verification.explanation = (
            "run as it stands, every value of the graph agrees with onnxruntime's: "
            "the difference is in the incremental execution, or in torch's export"
        )
