"""The run: engines alternate, everything is measured in the same minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from kvik.bench.engines import Decoded, Engine, Ids, KvikEngine, open_engine
from kvik.bench.machine import Machine, Roofline, describe_machine, measure_roofline
from kvik.bench.memory import Footprint, measure_footprint
from kvik.bench.ties import is_tie
from kvik.errors import InvalidArgumentError, KvikError

if TYPE_CHECKING:
    from pathlib import Path

    from kvik.arguments import CacheType, WeightType
    from kvik.info import ModelInfo

__all__ = [
    "Absent",
    "Benchmark",
    "EngineFigures",
    "Parity",
    "Plan",
    "random_prompt",
    "run_benchmark",
]

PEERS = ("onnxruntime",)

Progress = Callable[[str], None]

_REST = 0.05  # seconds between the engines' turns


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    model: Path
    threads: int | None = None
    weights: WeightType = "f32"  # of kvik; the peers run the file as it is
    cache: CacheType = "f32"
    prompt_tokens: int = 128
    new_tokens: int = 32
    rounds: int = 5
    seed: int = 0  # of the random prompt


@dataclass(frozen=True)
class EngineFigures:
    """One engine's samples, one a round."""

    name: str
    version: str
    how: str
    load_seconds: list[float]
    prefill_tokens_per_second: list[float]  # logits of every prompt token
    first_token_seconds: list[float]
    decode_tokens_per_second: list[float]
    peak_bytes: int
    base_bytes: int


@dataclass(frozen=True)
class Absent:
    """A peer that was not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Parity:
    """Whether a peer chose the same greedy tokens, in the same run."""

    peer: str
    tokens: int  # compared
    first_difference: int | None  # index of the first new token that differs
    margin: float | None  # there: logit of the peer's choice above that of kvik's, by the peer
    max_logit_error: float  # over the prompt's logits
    exact: bool = True  # False: low-precision weights or cache, which may choose otherwise

    @property
    def same(self) -> bool:
        """The same tokens, or a first difference between two that are as good as equal."""
        return self.first_difference is None or not self.exact or is_tie(self.margin or 0.0)


@dataclass(frozen=True)
class Benchmark:
    """A finished run."""

    plan: Plan
    machine: Machine
    info: ModelInfo
    roofline: Roofline
    engines: list[EngineFigures]  # kvik first
    absent: list[Absent]
    parity: list[Parity]

    @property
    def correct(self) -> bool:
        return all(item.same for item in self.parity)


def run_benchmark(plan: Plan, progress: Progress) -> Benchmark:
    """Measure kvik and its peers; ``progress`` is told what is going on."""
    progress("loading")
    kvik = KvikEngine(plan.model, plan.threads, plan.weights, plan.cache)
    info = kvik.model.info
    prompt = random_prompt(plan, info)
    engines: list[Engine] = [kvik]
    absent: list[Absent] = []
    for name in PEERS:
        opened = _open_peer(name, plan, info)
        if isinstance(opened, Absent):
            absent.append(opened)
        else:
            engines.append(opened)
    footprints = _footprints(plan, info, [engine.name for engine in engines], progress)
    rooflines: list[Roofline] = []

    def measure_machine() -> None:
        progress("measuring the machine")
        time.sleep(_REST)
        rooflines.append(measure_roofline(info, plan.prompt_tokens + plan.new_tokens / 2))

    figures, parity = _alternate(plan, engines, prompt, footprints, progress, measure_machine)
    # A shared machine's memory gives twice as much in one minute as in another.
    roofline = reduce(Roofline.best, rooflines)
    return Benchmark(plan, describe_machine(), info, roofline, figures, absent, parity)


def _open_peer(name: str, plan: Plan, info: ModelInfo) -> Engine | Absent:
    try:
        return open_engine(name, plan.model, info.threads)
    except ImportError:
        return Absent(name, f"not installed (pip install {name})")
    except Exception as error:  # a peer that can't run the file must not stop the measurement
        return Absent(name, " ".join(str(error).split())[:200])


def random_prompt(plan: Plan, info: ModelInfo) -> Ids:
    """The plan's prompt: int64 [prompt_tokens]. Raises InvalidArgumentError beyond the context."""
    wanted = plan.prompt_tokens + plan.new_tokens
    if info.context_length is not None and wanted > info.context_length:
        raise InvalidArgumentError(
            f"{plan.prompt_tokens} prompt tokens and {plan.new_tokens} new ones are more than the "
            f"context of {info.context_length}: lower --prompt-tokens or --new-tokens"
        )
    rng = np.random.default_rng(plan.seed)
    return rng.integers(0, info.vocab_size, plan.prompt_tokens, dtype=np.int64)


def _footprints(
    plan: Plan, info: ModelInfo, names: Sequence[str], progress: Progress
) -> dict[str, list[Footprint]]:
    """Fresh processes, alternating; two new tokens are enough to touch all memory."""
    found: dict[str, list[Footprint]] = {name: [] for name in names}
    for round_index in range(min(plan.rounds, 3)):
        for name in names:
            progress(f"load and memory, round {round_index + 1}: {name}")
            found[name].append(
                measure_footprint(
                    name, plan.model, info.threads, plan.weights, plan.cache, plan.prompt_tokens, 2
                )
            )
    return found


@dataclass
class _Samples:
    prefill: list[float]
    decoded: list[Decoded]


def _alternate(
    plan: Plan,
    engines: Sequence[Engine],
    prompt: Ids,
    footprints: dict[str, list[Footprint]],
    progress: Progress,
    after_round: Callable[[], None],
) -> tuple[list[EngineFigures], list[Parity]]:
    samples = {engine.name: _Samples([], []) for engine in engines}
    logits = {}
    for engine in engines:
        progress(f"warm-up: {engine.name}")
        logits[engine.name] = engine.prefill(prompt)
        engine.decode(prompt, 2)
    for round_index in range(plan.rounds):
        for engine in engines:
            progress(f"round {round_index + 1} of {plan.rounds}: {engine.name}")
            # An engine's threads may spin on for a while after its turn, and what the next one
            # needs is no longer in the caches: neither is to count against it.
            time.sleep(_REST)
            engine.prefill(prompt)
            start = time.perf_counter()
            engine.prefill(prompt)
            samples[engine.name].prefill.append(len(prompt) / (time.perf_counter() - start))
            samples[engine.name].decoded.append(engine.decode(prompt, plan.new_tokens))
        after_round()
    ours = samples["kvik"].decoded[0].tokens
    errors = {name: float(np.abs(logits[name] - logits["kvik"]).max()) for name in logits}
    parity = [
        replace(
            _parity(peer, prompt, ours, samples[peer.name].decoded[0].tokens, errors[peer.name]),
            exact=plan.weights == plan.cache == "f32",
        )
        for peer in engines[1:]
    ]
    return [_figures(e, samples[e.name], footprints[e.name]) for e in engines], parity


def _figures(engine: Engine, samples: _Samples, footprints: list[Footprint]) -> EngineFigures:
    return EngineFigures(
        name=engine.name,
        version=engine.version,
        how=engine.how,
        load_seconds=[item.load_seconds for item in footprints],
        prefill_tokens_per_second=samples.prefill,
        first_token_seconds=[item.first_token_seconds for item in samples.decoded],
        decode_tokens_per_second=[item.tokens_per_second for item in samples.decoded],
        peak_bytes=max(item.peak_bytes for item in footprints),
        base_bytes=min(item.base_bytes for item in footprints),
    )


def _parity(
    peer: Engine, prompt: Ids, ours: list[int], theirs: list[int], max_error: float
) -> Parity:
    if len(ours) != len(theirs):
        raise KvikError(f"kvik gave {len(ours)} tokens and {peer.name} {len(theirs)}")
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            row = peer.prefill(np.concatenate([prompt, np.asarray(theirs[:i], np.int64)]))[-1]
            return Parity(peer.name, len(ours), i, float(row[b] - row[a]), max_error)
    return Parity(peer.name, len(ours), None, None, max_error)
