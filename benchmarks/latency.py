"""How long one answer takes, of Kvik and of onnxruntime, on the same file.

Both compute what the task of the file is for: an image, a text, or tokens one after the other,
which onnxruntime gets by running the plain forward for each. They take turns; the medians count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import kvik
from kvik import _core
from kvik_export.engines import onnxruntime_session

TOKENS = 64  # of a text; of a prompt and its answer together
NEW_TOKENS = 32  # of an answer
SOURCE_TOKENS = 24  # of a text to be translated
TARGET_TOKENS = 24

Call = Callable[[], object]


@dataclass(frozen=True)
class Latency:
    what: str  # "an image", "a text of 64 tokens", ...
    kvik: float  # milliseconds, median
    onnxruntime: float

    @property
    def ratio(self) -> float:
        return self.onnxruntime / self.kvik


def measure(path: Path, *, rounds: int = 15, threads: int | None = None) -> Latency:
    """Milliseconds for one answer of the file's task."""
    session = onnxruntime_session(str(path), threads=threads)
    task = session.get_modelmeta().custom_metadata_map["kvik.task"]
    if task == "translate":
        what, ours, theirs = _translation(path, session, threads)
    else:
        what, ours, theirs = _calls(kvik.load(path, threads=threads), session)
    ours()
    theirs()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, samples in ((ours, seconds[0]), (theirs, seconds[1])):
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
    mine, other = (1000 * statistics.median(samples) for samples in seconds)
    return Latency(what, mine, other)


def _calls(model: kvik.Model, session: Any) -> tuple[str, Call, Call]:
    """What is computed, and how Kvik and onnxruntime do it."""
    random = np.random.default_rng(0)
    if model.task == "classify_image":
        shape = [size if isinstance(size, int) else 1 for size in model.info.inputs[0].shape or ()]
        image = random.standard_normal(shape).astype(np.float32)
        feed = {model.info.inputs[0].name: image}
        return "an image", lambda: model._core.encode_images(image), lambda: session.run(None, feed)
    assert model.tokenizer is not None
    vocab = model.tokenizer.raw.get_vocab_size()
    if model.task == "generate":
        prompt = random.integers(0, vocab, TOKENS - NEW_TOKENS)
        return (
            f"{NEW_TOKENS} tokens after {len(prompt)}",
            lambda: model.generate(prompt, max_new_tokens=NEW_TOKENS, stop_ids=()),
            lambda: _greedy(session, "ids", {}, prompt, NEW_TOKENS),
        )
    ids = random.integers(0, vocab, min(TOKENS, model.info.context_length or TOKENS))
    feeds = {
        item.name: np.full((1, len(ids)), int(item.name == "attention_mask"), np.int64)
        for item in model.info.inputs
    }
    feeds["input_ids"] = ids[None]
    return (
        f"a text of {len(ids)} tokens",
        lambda: model.encode([ids]),
        lambda: session.run(None, feeds),
    )


def _translation(path: Path, session: Any, threads: int | None) -> tuple[str, Call, Call]:
    """Greedy, with as many tokens for both."""
    metadata = session.get_modelmeta().custom_metadata_map
    start = np.array([int(metadata["kvik.start_token_id"])])
    vocab = session.get_outputs()[0].shape[-1]
    source = np.random.default_rng(0).integers(5, vocab, SOURCE_TOKENS)
    fixed = {"source_ids": source[None], "source_mask": np.ones((1, SOURCE_TOKENS), np.int64)}

    model, most = kvik.load(path, threads=threads), [TARGET_TOKENS]
    return (
        f"{TARGET_TOKENS} tokens for {SOURCE_TOKENS}",
        partial(_core.beam_search, model._core, [start], [source], 1, 1, most, 0.0, []),
        partial(_greedy, session, "target_ids", fixed, start, TARGET_TOKENS),
    )


def _greedy(
    session: Any, name: str, fixed: dict[str, Any], prompt: np.ndarray, count: int
) -> list[int]:
    """The most likely tokens, one forward pass of everything for each."""
    ids = [int(token) for token in prompt]
    for _ in range(count):
        logits = session.run(["logits"], {**fixed, name: np.array([ids])})[0]
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]
