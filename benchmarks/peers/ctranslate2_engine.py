"""CTranslate2 with its own converted form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Generated, Peer
from benchmarks.workspace import Workspace

TYPES = {"f32": "float32", "int8": "int8"}


class CTranslate2Peer(Peer):
    name = "ctranslate2"
    module = "ctranslate2"
    distribution = "ctranslate2"
    precisions = ("f32", "int8")
    setting = "converted, greedy, no end of text"

    def prepare(self, work: Workspace, precision: str) -> Path:
        def convert(folder: Path) -> None:
            from ctranslate2.converters import TransformersConverter

            TransformersConverter(str(work.checkpoint)).convert(
                str(folder), quantization=TYPES[precision], force=True
            )

        return work.make(f"ctranslate2-{precision}", convert)

    def load(self, path: Path, precision: str, threads: int, positions: int) -> None:
        import ctranslate2

        self._generator: Any = ctranslate2.Generator(
            str(path),
            device="cpu",
            compute_type=TYPES[precision],
            inter_threads=1,
            intra_threads=threads,
        )

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generated:
        words = [[f"t{token}" for token in ids] for ids in prompts]
        times: list[float] = []
        start = time.perf_counter()

        def note(step: Any) -> bool:
            if step.step == 0:
                times.append(time.perf_counter() - start)
            return False

        results = self._generator.generate_batch(
            words,
            max_length=new_tokens,
            min_length=new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=note,
        )
        seconds = time.perf_counter() - start
        tokens = [result.sequences_ids[0] for result in results]
        return Generated(tokens, times[-1] if times else seconds, seconds)
