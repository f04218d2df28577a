"""Kvik's own GPT in its variants, exported by kvik_export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from kvik_export.exporter import export_module
from kvik_train.models.gpt import GPT, GPTConfig

from parity.zoo.registry import Case, seed_of
from parity.zoo.torch_export import export_torchscript

BASE = GPTConfig(vocab_size=97, context_length=64, n_layer=2, n_head=4, n_embd=32)
VARIANTS = {
    "gpt": BASE,
    "gpt-post": replace(BASE, norm="post", gelu="exact", tie_weights=False, bias=False),
    "gpt-exact": replace(BASE, gelu="exact", tie_weights=False, norm_bias=False),
}


def build_module(name: str) -> GPT:
    torch.manual_seed(seed_of(name))
    model = GPT(VARIANTS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than at the start of training: attention that attends, logits that differ.
            parameter.add_(torch.randn_like(parameter) * (0.25 if parameter.dim() > 1 else 0.1))
    return model


def _case(name: str, opset: int) -> Case:
    config = VARIANTS[name]

    def build(path: Path) -> None:
        export_module(
            build_module(name),
            path,
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            family="gpt",
            opset=opset,
        )

    return Case(f"{name}-op{opset}", build, config.vocab_size, config.context_length)


def _torchscript_case(name: str, opset: int) -> Case:
    config = VARIANTS[name]

    def build(path: Path) -> None:
        export_torchscript(build_module(name), path, vocab=config.vocab_size, opset=opset)

    return Case(
        f"{name}-torchscript-op{opset}", build, config.vocab_size, config.context_length
    )


def cases() -> Iterator[Case]:
    for name in VARIANTS:
        yield _case(name, 18)
        yield _case(name, 23)
    yield _torchscript_case("gpt", 14)
    yield _torchscript_case("gpt-exact", 17)
