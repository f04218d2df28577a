"""AdamW with decoupled weight decay (Loshchilov and Hutter 2019) and its learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from kvik_train.config import TrainConfig


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (biases, gains) do not: GPT-1, "all non bias or gain weights"."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        decay_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,  # one pass over the weights, on the CPU too
    )


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, ...: a linear rise to the peak, then a cosine to the minimum.

    The first step has 1/warmup_steps of the peak, so that no step is wasted at zero.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, config.steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    share = 0.5 * (1.0 + math.cos(math.pi * progress))
    low = min(config.min_learning_rate, config.learning_rate)
    return low + share * (config.learning_rate - low)
