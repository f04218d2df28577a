"""GPT: a decoder-only transformer, in the order in which the data passes through it.

GPT-2 (Radford et al. 2019) by default: learned positions, pre-LN, tanh GELU, tied embeddings.
`norm="post"` gives the residual order of GPT-1 (Radford et al. 2018), whose second stage, a text
classified by its last token, is GPTClassifier.

Shapes: B sequences, S tokens each, C = n_embd channels, H = n_head heads, D = C / H,
V = vocab_size.

The forward pass is a plain function of token ids. It keeps no cache and takes no mask, so that
what is exported is exactly what was trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.errors import TrainError
from kvik_train.models.attention import last_real
from kvik_train.models.checks import check_dropout, check_heads, check_positive

# Standard deviations of GPT-2's initialisation, from the released model code.
_WEIGHT_STD = 0.02
_POSITION_STD = 0.01


@dataclass(frozen=True)
class GPTConfig:
    """The architecture; saved with every checkpoint. The defaults are GPT-2 124M."""

    vocab_size: int = 50257
    context_length: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    norm: Literal["pre", "post"] = "pre"
    gelu: Literal["tanh", "exact"] = "tanh"
    bias: bool = True  # of the linear layers inside the blocks; the vocabulary projection has none
    norm_bias: bool = True  # of the layer normalisations
    tie_weights: bool = True  # the vocabulary projection is the token embedding
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "vocab_size", "context_length", "n_layer", "n_head", "n_embd")
        check_heads(self.n_embd, self.n_head)
        if self.norm not in ("pre", "post"):
            raise TrainError(f"norm is {self.norm!r}; it is 'pre' (GPT-2) or 'post' (GPT-1)")
        if self.gelu not in ("tanh", "exact"):
            raise TrainError(f"gelu is {self.gelu!r}; it is 'tanh' or 'exact'")
        check_dropout(self.dropout)


PRESETS: dict[str, GPTConfig] = {
    # vocab_size here is what the tokenizer aims at; the trained tokenizer has the last word.
    # Exact GELU: torch computes erf three times faster than tanh on a CPU.
    "char-tiny": GPTConfig(
        vocab_size=384, context_length=128, n_layer=4, n_head=4, n_embd=128, gelu="exact"
    ),
    "char-small": GPTConfig(
        vocab_size=384, context_length=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2
    ),
    "gpt2": GPTConfig(dropout=0.1),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024, dropout=0.1),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280, dropout=0.1),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600, dropout=0.1),
}


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # Post-LN blocks end in a normalisation already.
        self.final_norm = layer_norm(config) if config.norm == "pre" else nn.Identity()
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight
        self.initialise()

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the token after each one: ids [B, S] of integers -> [B, S, V].

        S is at most config.context_length. Position i of the output depends on ids[:, :i + 1].
        """
        logits: Tensor = self.head(self.hidden(ids))
        return logits

    def hidden(self, ids: Tensor) -> Tensor:
        """What the projections read: ids [B, S] -> [B, S, C]."""
        positions = torch.arange(ids.shape[1], device=ids.device)  # [S]
        x = self.token_embedding(ids) + self.position_embedding(positions)  # [B, S, C]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the weights as GPT-2 does: N(0, 0.02), positions N(0, 0.01), biases zero.

        The projections that write into the residual stream are scaled by 1/sqrt(2 n_layer), since
        2 n_layer of them add up there. Post-LN normalises each sum and needs no such scale.
        """
        residual_std = _WEIGHT_STD
        if self.config.norm == "pre":
            residual_std /= math.sqrt(2 * self.config.n_layer)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes_residual = name.endswith(".output")
                nn.init.normal_(module.weight, std=residual_std if writes_residual else _WEIGHT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.token_embedding.weight, std=_WEIGHT_STD)
        nn.init.normal_(self.position_embedding.weight, std=_POSITION_STD)

    def parameter_count(self) -> int:
        """Number of trained values; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


class GPTClassifier(nn.Module):
    """GPT-1's second stage: a linear layer over the last token of a text (section 3.2).

    Texts end in <|endoftext|>, which takes the place of the paper's extract token. Padding stands
    on the right, where causal attention never looks.
    """

    def __init__(self, config: GPTConfig, n_label: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = GPT(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.n_embd, n_label)
        nn.init.normal_(self.classifier.weight, std=_WEIGHT_STD)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, ids: Tensor, mask: Tensor, *, next_token: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, labels] of ids and mask [B, S], whose mask is 1 at real tokens.

        With `next_token` also the logits [B, S, V] of the language model, the auxiliary objective.
        """
        hidden = self.backbone.hidden(ids)  # [B, S, C]
        logits = self.classifier(self.dropout(last_real(hidden, mask)))
        return (logits, self.backbone.head(hidden)) if next_token else logits


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream x [B, S, C]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.attention_norm = layer_norm(config)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = layer_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]
        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.mlp(x))  # type: ignore[no-any-return]


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.dropout_p = config.dropout  # of the attention weights
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.output = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        q, k, v = (
            part.view(batch, length, self.n_head, self.head_dim).transpose(1, 2)  # [B, H, S, D]
            for part in self.qkv(x).split(channels, dim=2)
        )
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout_p if self.training else 0.0, is_causal=True
        )
        y = y.transpose(1, 2).reshape(batch, length, channels)
        return self.output_dropout(self.output(y))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh" if config.gelu == "tanh" else "none")
        self.output = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.output(self.gelu(self.input(x))))  # type: ignore[no-any-return]


def layer_norm(config: GPTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, bias=config.norm_bias)
