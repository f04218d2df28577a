"""The Transformer: an encoder-decoder (Vaswani et al. 2017, "Attention is all you need").

Post-LN, ReLU, sinusoidal positions; one matrix is the embedding of both languages and the
projection to the vocabulary.

Shapes: B sentences, S source and T target tokens, C = n_embd channels, V = vocab_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.models.attention import Attention, visible_keys
from kvik_train.models.checks import check_dropout, check_heads, check_positive


@dataclass(frozen=True)
class TransformerConfig:
    """The architecture; saved with every checkpoint. The defaults are the paper's base model."""

    vocab_size: int = 37000
    context_length: int = 512  # longest source and longest target
    n_layer: int = 6  # of the encoder, and of the decoder
    n_head: int = 8
    n_embd: int = 512
    n_feed_forward: int = 2048
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_positive(
            self, "vocab_size", "context_length", "n_layer", "n_head", "n_embd", "n_feed_forward"
        )
        check_heads(self.n_embd, self.n_head)
        check_dropout(self.dropout)


PRESETS: dict[str, TransformerConfig] = {
    "transformer-tiny": TransformerConfig(
        vocab_size=400, context_length=64, n_layer=2, n_head=4, n_embd=128, n_feed_forward=512,
        dropout=0.0,
    ),
    "transformer-base": TransformerConfig(),
    "transformer-big": TransformerConfig(
        n_head=16, n_embd=1024, n_feed_forward=4096, dropout=0.3
    ),
}  # fmt: skip


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions: Tensor  # [context_length, C]
        table = sinusoids(config.context_length, config.n_embd)
        self.register_buffer("positions", table, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layer))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layer))
        self.initialise()

    def forward(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each of target_ids [B, T].

        source_ids and source_mask are [B, S]; the mask is 1 at real tokens, 0 at padding. Row i
        of the output depends on the source and on target_ids[:, :i + 1].
        """
        return self.decode(self.encode(source_ids, source_mask), source_mask, target_ids)

    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Tensor:
        """The source in its context, [B, S, C]."""
        visible = visible_keys(source_mask)
        x = self._embed(source_ids)
        for layer in self.encoder:
            x = layer(x, visible)
        return x

    def decode(self, memory: Tensor, source_mask: Tensor, target_ids: Tensor) -> Tensor:
        visible = visible_keys(source_mask)
        x = self._embed(target_ids)
        for layer in self.decoder:
            x = layer(x, memory, visible)
        return F.linear(x, self.embedding.weight)

    def _embed(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embedding(ids) * math.sqrt(self.config.n_embd)
        x = x + F.embedding(positions, self.positions)
        return self.dropout(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier for the matrices (as the authors' code), N(0, 1/C) for the embedding."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=self.config.n_embd**-0.5)


class EncoderLayer(nn.Module):
    """x [B, S, C]: attention among the source's tokens, then the feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config.n_embd, config.n_head, 0.0)
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=visible)))
        x = x + self.dropout(self.feed_forward(x))
        return self.feed_forward_norm(x)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """x [B, T, C]: causal attention, attention to the source, then the feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config.n_embd, config.n_head, 0.0)
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.cross_attention = Attention(config.n_embd, config.n_head, 0.0)
        self.cross_attention_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, causal=True)))
        y = self.cross_attention(x, memory, mask=visible)
        x = self.cross_attention_norm(x + self.dropout(y))
        x = x + self.dropout(self.feed_forward(x))
        return self.feed_forward_norm(x)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """max(0, x W1 + b1) W2 + b2, for each position."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.n_embd, config.n_feed_forward)
        self.output = nn.Linear(config.n_feed_forward, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(self.input(x)))  # type: ignore[no-any-return]


def sinusoids(length: int, channels: int) -> Tensor:
    """Section 3.5: sin(p / 10000^(2i / C)) in channel 2i, the cosine in channel 2i + 1."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    even = torch.arange(0, channels, 2, dtype=torch.float64)
    angle = position / 10000.0 ** (even / channels)  # [length, C / 2, rounded up]
    table = torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)
    return table[:, :channels].to(torch.float32)
