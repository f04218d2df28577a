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
        eps=config.epsilon,
        fused=True,  # one pass over the weights, on the CPU too
    )


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, ...: a linear rise to the peak, then a fall by `config.schedule`.

    - cosine: half a cosine to the minimum, which the last step has.
    - linear: a line to the minimum, as in BERT.
    - inverse-sqrt: peak * sqrt(warmup / step), counted from 1, of Vaswani et al. 2017. Their
      d_model^-0.5 * min(step^-0.5, step * warmup^-1.5) has its peak, (d_model * warmup)^-0.5, at
      step = warmup.

    The first step has 1/warmup_steps of the peak, so that no step is wasted at zero.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "inverse-sqrt":
        return config.learning_rate * math.sqrt(max(1, config.warmup_steps) / (step + 1))
    span = max(1, config.steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    linear = config.schedule == "linear"
    share = 1.0 - progress if linear else 0.5 * (1.0 + math.cos(math.pi * progress))
    low = min(config.min_learning_rate, config.learning_rate)
    return low + share * (config.learning_rate - low)
