"""The rounds of language models: prompts, tokens, and whether these are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.check import check_tokens
from benchmarks.client import Client, EngineError
from benchmarks.entries import find
from benchmarks.machine import commit, describe
from benchmarks.peers import peer
from benchmarks.peers.base import Engine, Peer
from benchmarks.plan import CONTEXT, Case, Plan
from benchmarks.results import Entry, Record, Sample
from benchmarks.rounds import Open, Progress, Rounds

FEW_TOKENS = 6  # of an engine that recomputes everything for each


class Runner(Rounds[Entry, Case, Sample]):
    """One run of a plan."""

    worker = "benchmarks.worker"
    record: Record

    def __init__(self, plan: Plan, progress: Progress, open_client: Open | None = None) -> None:
        self._plan = plan
        super().__init__(plan, Record(describe(), asdict(plan), commit()), progress, open_client)

    def run(self) -> None:
        for model in self._plan.models:
            for precision in self._plan.precisions:
                for threads in self._plan.threads:
                    self.measure(model, precision, threads, self._plan.cases)
            others = [n for n in self._plan.scaling_threads if n not in self._plan.threads]
            for threads in others:
                for precision in self._plan.precisions:
                    self.measure(model, precision, threads, self._plan.cases[:1])
        for model in self._plan.models:
            for threads in {*self._plan.threads, *self._plan.scaling_threads}:
                check_tokens(self.record.entries, model, threads, self._gap)

    # ---- what is measured ------------------------------------------------------------------------

    def engine(self, name: str) -> Peer:
        return peer(name)

    def new_entry(self, engine: Engine, model: str, precision: str, threads: int) -> Entry:
        return Entry(model, engine.name, precision, threads)

    def load_options(self, entry: Entry) -> dict[str, Any]:
        return {"positions": CONTEXT}

    def ceilings(self, client: Client, cases: Sequence[Case]) -> dict[str, float]:
        position = cases[0].prompt_tokens + cases[0].new_tokens / 2
        line: dict[str, float] = client.ask("roofline", mean_position=position)
        return line

    def sample(self, client: Client, entry: Entry, case: Case, warm_up: bool) -> Sample:
        recomputes = peer(entry.engine).recomputes
        if recomputes and case.batch > 1:
            raise EngineError("unsupported", "recomputes: not measured in batches")
        tokens = min(case.new_tokens, 2) if warm_up else case.new_tokens
        asked = min(tokens, FEW_TOKENS) if recomputes else tokens
        prompts = self._prompts(case)
        made = client.ask("generate", prompts=prompts, new_tokens=asked)
        found = made["tokens"]
        if [len(one) for one in found] != [asked] * case.batch:
            raise EngineError("failed", f"asked for {asked} tokens, gave {list(map(len, found))}")
        if case is self._plan.cases[0] and asked > len(entry.tokens):
            entry.tokens = found[0]
        first, seconds = made["first_seconds"], made["seconds"]
        if asked < tokens and asked > 1:  # as if it had gone on at this rate
            seconds = first + (seconds - first) * (tokens - 1) / (asked - 1)
        return Sample(first, seconds)

    def _prompts(self, case: Case) -> list[list[int]]:
        rng = np.random.default_rng(self._plan.seed)
        high = 49_000  # in every model's vocabulary
        found: list[list[int]] = rng.integers(3, high, (case.batch, case.prompt_tokens)).tolist()
        return found

    def _gap(self, model: str, ids: list[int], first: int, second: int) -> float | None:
        """By onnxruntime on the plain export: the logit of `first` above that of `second`."""
        entry = find(self.record.entries, model, "onnxruntime", "f32", self._plan.threads[0])
        if entry is None or entry.status != "ok":
            return None
        prompt = self._prompts(self._plan.cases[0])[0]
        try:
            with self.loaded(entry) as client:
                gap: float = client.ask("gap", ids=prompt + ids, first=first, second=second)
                return gap
        except EngineError:
            return None
