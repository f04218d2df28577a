"""Kvik's own GPT in its variants, exported by kvik_export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.zoo.registry import CONTEXT, Case, seed_of

if TYPE_CHECKING:
    from kvik_train.models.gpt import GPT

VOCAB = 97
# Settings of GPTConfig beyond the sizes.
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "gpt-post": {"norm": "post", "gelu": "exact", "tie_weights": False, "bias": False},
    "gpt-exact": {"gelu": "exact", "tie_weights": False, "norm_bias": False},
}


def build_module(name: str) -> GPT:
    import torch

    from kvik_train.models.gpt import GPT, GPTConfig

    config = GPTConfig(
        vocab_size=VOCAB, context_length=CONTEXT, n_layer=2, n_head=4, n_embd=32, **VARIANTS[name]
    )
    torch.manual_seed(seed_of(name))
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than at the start of training: attention that attends, logits that differ.
            parameter.add_(torch.randn_like(parameter) * (0.25 if parameter.dim() > 1 else 0.1))
    return model


def _case(name: str, opset: int) -> Case:
    def build(path: Path) -> None:
        from kvik_export.exporter import export_module

        export_module(
            build_module(name),
            path,
            vocab_size=VOCAB,
            context_length=CONTEXT,
            family="gpt",
            opset=opset,
        )

    return Case(f"{name}-op{opset}", build, VOCAB, CONTEXT)


def _torchscript_case(name: str, opset: int) -> Case:
    def build(path: Path) -> None:
        from parity.zoo.torch_export import export_torchscript

        export_torchscript(build_module(name), path, vocab=VOCAB, opset=opset)

    return Case(f"{name}-torchscript-op{opset}", build, VOCAB, CONTEXT)


def cases() -> Iterator[Case]:
    for name in VARIANTS:
        yield _case(name, 18)
        yield _case(name, 23)
    yield _torchscript_case("gpt", 14)
    yield _torchscript_case("gpt-exact", 17)
