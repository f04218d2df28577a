"""onnxruntime-genai on what its own model builder makes of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import Generated, Peer, UnsupportedCaseError, step_by_step
from benchmarks.workspace import Workspace

_TYPES = {"f32": "fp32", "int8": "int8", "int4": "int4"}


class GenAiPeer(Peer):
    name = "onnxruntime-genai"
    module = "onnxruntime_genai"
    distribution = "onnxruntime-genai"
    precisions = ("f32", "int8", "int4")
    setting = "its model builder for the CPU; products of low precision in 8-bit integers"

    def prepare(self, work: Workspace, precision: str) -> Path:
        architecture = work.config["architectures"][0]
        if architecture == "GPT2LMHeadModel":
            raise UnsupportedCaseError("its model builder does not know GPT-2")

        def build(folder: Path) -> None:
            from onnxruntime_genai.models.builder import create_model, parse_extra_options

            cache = folder / ".cache"
            place = ("", str(work.checkpoint), str(folder), _TYPES[precision], "cpu", str(cache))
            wanted = [] if precision == "f32" else ["accuracy_level=4"]
            create_model(*place, **parse_extra_options(*place, wanted))

        return work.make(f"genai-{precision}", build)

    def load(self, path: Path, precision: str, threads: int, positions: int) -> None:
        import onnxruntime_genai as og

        og.disable_telemetry_events()
        config = og.Config(str(path))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model: Any = og.Model(config)
        self._positions = positions

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generated:
        import onnxruntime_genai as og

        parameters = og.GeneratorParams(self._model)
        length = len(prompts[0]) + new_tokens
        parameters.set_search_options(
            batch_size=len(prompts), do_sample=False, max_length=length, min_length=length
        )
        generator = og.Generator(self._model, parameters)

        def step(_: list[int]) -> list[int]:
            generator.generate_next_token()
            return [int(token) for token in generator.get_next_tokens()]

        def prefill() -> list[int]:
            generator.append_tokens(np.asarray(prompts, dtype=np.int32))
            return step([])

        return step_by_step(prefill, step, new_tokens)
