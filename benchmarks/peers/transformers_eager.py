"""PyTorch through transformers, without compilation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Generated, Peer, step_by_step
from benchmarks.workspace import Workspace


class TransformersPeer(Peer):
    name = "transformers"
    module = "transformers"
    distribution = "transformers"
    precisions = ("f32", "bf16")
    setting = "PyTorch, eager, scaled-dot-product attention, its own cache"

    def prepare(self, work: Workspace, precision: str) -> Path:
        return work.checkpoint

    def load(self, path: Path, precision: str, threads: int, positions: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        dtype = torch.float32 if precision == "f32" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa"
        )
        self._model: Any = model.eval()

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generated:
        import torch

        cache: Any = None

        def run(ids: Any) -> list[int]:
            nonlocal cache
            with torch.inference_mode():
                result = self._model(
                    input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            cache = result.past_key_values
            found: list[int] = result.logits[:, -1].argmax(-1).tolist()
            return found

        return step_by_step(
            lambda: run(torch.tensor(prompts)),
            lambda last: run(torch.tensor(last)[:, None]),
            new_tokens,
        )
