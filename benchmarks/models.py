"""Models of well-known shapes with seeded random weights, exported as their plain forward.

    python benchmarks/models.py gpt2 -o gpt2.onnx

Speed does not depend on the values of the weights, so no download is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from kvik_export.exporter import export_module

# name: (config class, model class, settings beyond the config's defaults)
SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "llama-135m": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "max_position_embeddings": 2048, "tie_word_embeddings": True,
        },
    ),
    "llama-1.1b": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 5632,
            "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
            "max_position_embeddings": 2048, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip


class PlainForward(nn.Module):
    """ids int64 [B, S] -> logits float32 [B, S, V] of a transformers model, without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def build(name: str, seed: int = 0) -> nn.Module:
    """The transformers model of that shape, in eval mode."""
    config_class, model_class, settings = SHAPES[name]
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, model_class)(
        getattr(transformers, config_class)(**settings)
    )
    return model.eval()


def export(name: str, path: Path, *, opset: int = 23, seed: int = 0) -> str:
    """Writes the model; returns a line about the file."""
    model = build(name, seed)
    config: Any = model.config
    result = export_module(
        PlainForward(model),
        path,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        family=name,
        opset=opset,
    )
    return result.summary()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--opset", type=int, default=23)
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    arguments = parser.parse_args()
    print(export(arguments.name, arguments.output, opset=arguments.opset, seed=arguments.seed))


if __name__ == "__main__":
    main()
