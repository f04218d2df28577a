"""ViT: a transformer encoder over the patches of an image (Dosovitskiy et al. 2021).

Pre-LN, a class token, learned positions.

Shapes: B images of `channels` x I x I pixels, I = image_size; P = (I / patch_size)^2 patches;
C = n_embd channels, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.errors import TrainError
from kvik_train.models.attention import Attention
from kvik_train.models.checks import check_dropout, check_heads, check_positive

_WEIGHT_STD = 0.02


@dataclass(frozen=True)
class ViTConfig:
    """The architecture; saved with every checkpoint. The defaults are ViT-B/16."""

    image_size: int = 224
    channels: int = 3
    patch_size: int = 16
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_feed_forward: int = 3072
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(
            self, "image_size", "channels", "patch_size", "n_layer", "n_head", "n_embd",
            "n_feed_forward",
        )  # fmt: skip
        if self.image_size % self.patch_size:
            raise TrainError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        check_heads(self.n_embd, self.n_head)
        check_dropout(self.dropout)


PRESETS: dict[str, ViTConfig] = {
    "vit-tiny": ViTConfig(
        image_size=8, channels=1, patch_size=2, n_layer=3, n_head=4, n_embd=64, n_feed_forward=256,
        dropout=0.0,
    ),
    "vit-base-16": ViTConfig(),
    "vit-large-16": ViTConfig(n_layer=24, n_head=16, n_embd=1024, n_feed_forward=4096),
}  # fmt: skip


class ViT(nn.Module):
    def __init__(self, config: ViTConfig, n_label: int) -> None:
        super().__init__()
        self.config = config
        patches = (config.image_size // config.patch_size) ** 2
        # A convolution whose stride is its size: a linear layer over each patch.
        self.patch_embedding = nn.Conv2d(
            config.channels, config.n_embd, config.patch_size, stride=config.patch_size
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.n_embd))
        self.position_embedding = nn.Parameter(torch.zeros(1, patches + 1, config.n_embd))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.classifier = nn.Linear(config.n_embd, n_label)
        self.initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, L] of images float32 [B, channels, I, I], normalised as in training."""
        x = self.patch_embedding(image).flatten(2).transpose(1, 2)  # [B, P, C]
        token = self.class_token.expand(x.shape[0], -1, -1)
        x = self.dropout(torch.cat((token, x), dim=1) + self.position_embedding)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.final_norm(x[:, 0]))  # type: ignore[no-any-return]

    @torch.no_grad()
    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.position_embedding, std=_WEIGHT_STD)
        nn.init.normal_(self.class_token, std=_WEIGHT_STD)
        nn.init.zeros_(self.classifier.weight)  # the paper starts its head at zero


class Block(nn.Module):
    """x [B, 1 + P, C]: attention, then the feed-forward network, each of the normalised x."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.attention = Attention(config.n_embd, config.n_head, 0.0)
        self.output_norm = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.input = nn.Linear(config.n_embd, config.n_feed_forward)
        self.output = nn.Linear(config.n_feed_forward, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        y = self.output(self.dropout(F.gelu(self.input(self.output_norm(x)))))
        return x + self.dropout(y)  # type: ignore[no-any-return]
