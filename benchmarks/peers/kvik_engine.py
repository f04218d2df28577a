"""This engine, through its public package, on the plain export."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Generated, Peer
from benchmarks.workspace import Workspace


class KvikPeer(Peer):
    name = "kvik"
    module = "kvik"
    distribution = "kvik"
    precisions = ("f32", "bf16", "int8", "int4")
    setting = "the plain export; the cache is found"

    def prepare(self, work: Workspace, precision: str) -> Path:
        return work.plain

    def load(self, path: Path, precision: str, threads: int, positions: int) -> None:
        import kvik

        weights: Any = precision
        self._model = kvik.load(path, threads=threads, weights=weights)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generated:
        from kvik import _core

        # What generate() and stream() run, token by token, for any number of prompts.
        greedy = _core.SamplerOptions(temperature=0.0)
        requests = [_core.GenerateRequest(list(ids), new_tokens, greedy, []) for ids in prompts]
        tokens: list[list[int]] = [[] for _ in prompts]
        first = 0.0
        start = time.perf_counter()
        generator = _core.Generator(self._model._core, requests)
        while not generator.done:
            for event in generator.step():
                if event.token >= 0:
                    tokens[event.request].append(event.token)
            if first == 0 and all(tokens):
                first = time.perf_counter() - start
        return Generated(tokens, first, time.perf_counter() - start)

    def isa(self) -> str:
        return self._model.info.isa

    def roofline(self, mean_position: float) -> dict[str, float]:
        """The ceilings for this precision and these threads, measured now."""
        from kvik.bench.machine import measure_roofline

        line = measure_roofline(self._model.info, mean_position)
        return {
            "read_bytes_per_second": line.read_bytes_per_second,
            "operations_per_second": line.flops_per_second,
            "decode_tokens_per_second": line.decode_tokens_per_second,
            "prefill_tokens_per_second": line.prefill_tokens_per_second,
        }
