"""BERT: a bidirectional transformer encoder (Devlin et al. 2019), and its heads.

Post-LN, exact GELU, learned positions, segment embeddings. One module per task; all of them hold
the encoder as `backbone`, so that a head can be exchanged.

Shapes: B sequences, S tokens each, C = n_embd channels, V = vocab_size, L labels. Every forward
takes ids [B, S], mask [B, S] (1 at real tokens, 0 at padding) and segments [B, S] (0 or 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.models.attention import Attention, visible_keys
from kvik_train.models.checks import check_dropout, check_heads, check_positive

_WEIGHT_STD = 0.02
_BASE_WIDTH = 768  # at which 0.02 was chosen
_NORM_EPS = 1e-12  # of the released model code


@dataclass(frozen=True)
class BERTConfig:
    """The architecture; saved with every checkpoint. The defaults are BERT-base, 110M."""

    vocab_size: int = 30522
    context_length: int = 512
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_feed_forward: int = 3072
    n_segment: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_positive(
            self, "vocab_size", "context_length", "n_layer", "n_head", "n_embd", "n_feed_forward",
            "n_segment",
        )  # fmt: skip
        check_heads(self.n_embd, self.n_head)
        check_dropout(self.dropout)


PRESETS: dict[str, BERTConfig] = {
    # vocab_size here is what the tokenizer aims at; the trained tokenizer has the last word.
    "bert-tiny": BERTConfig(
        vocab_size=4096, context_length=128, n_layer=3, n_head=4, n_embd=128, n_feed_forward=512,
        dropout=0.0,
    ),
    "bert-base": BERTConfig(),
    "bert-large": BERTConfig(n_layer=24, n_head=16, n_embd=1024, n_feed_forward=4096),
}  # fmt: skip


class BERT(nn.Module):
    """The encoder: tokens in their context, as vectors."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.segment_embedding = nn.Embedding(config.n_segment, config.n_embd)
        self.embedding_norm = nn.LayerNorm(config.n_embd, eps=_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        initialise(self, config)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """[B, S, C]. What stands at padding means nothing."""
        positions = torch.arange(ids.shape[1], device=ids.device)  # [S]
        x = (
            self.token_embedding(ids)
            + self.position_embedding(positions)
            + self.segment_embedding(segments)
        )
        x = self.dropout(self.embedding_norm(x))
        visible = visible_keys(mask)
        for block in self.blocks:
            x = block(x, visible)
        return x  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then the feed-forward network; each is added to x [B, S, C] and normalised."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.attention = Attention(config.n_embd, config.n_head, config.dropout)
        self.attention_norm = nn.LayerNorm(config.n_embd, eps=_NORM_EPS)
        self.input = nn.Linear(config.n_embd, config.n_feed_forward)
        self.output = nn.Linear(config.n_feed_forward, config.n_embd)
        self.output_norm = nn.LayerNorm(config.n_embd, eps=_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=visible)))
        y = self.output(F.gelu(self.input(x)))
        return self.output_norm(x + self.dropout(y))  # type: ignore[no-any-return]


class BERTPretraining(nn.Module):
    """Masked-language-model and next-sentence heads; the vocabulary projection is tied."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = BERT(config)
        self.pooler = nn.Linear(config.n_embd, config.n_embd)
        self.next_sentence = nn.Linear(config.n_embd, 2)
        self.transform = nn.Linear(config.n_embd, config.n_embd)
        self.transform_norm = nn.LayerNorm(config.n_embd, eps=_NORM_EPS)
        self.vocabulary_bias = nn.Parameter(torch.zeros(config.vocab_size))
        for module in (self.pooler, self.next_sentence, self.transform):
            initialise(module, config)

    def forward(
        self, ids: Tensor, mask: Tensor, segments: Tensor, positions: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, S, V] of the token at every place.

        With `positions` [B, M], the logits of these places alone [B, M, V], and the next-sentence
        logits [B, 2] (is it the next one, is it not): what pre-training needs.
        """
        hidden = self.backbone(ids, mask, segments)
        if positions is None:
            return self._vocabulary(hidden)
        index = positions[:, :, None].expand(-1, -1, hidden.shape[2])  # [B, M, C]
        pooled = torch.tanh(self.pooler(hidden[:, 0]))
        return self._vocabulary(hidden.gather(1, index)), self.next_sentence(pooled)

    def _vocabulary(self, hidden: Tensor) -> Tensor:
        x = self.transform_norm(F.gelu(self.transform(hidden)))
        return F.linear(x, self.backbone.token_embedding.weight, self.vocabulary_bias)


class BERTClassifier(nn.Module):
    """Labels of a text, or of a pair of texts, from the vector of [CLS]."""

    def __init__(self, config: BERTConfig, n_label: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = BERT(config)
        self.pooler = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.n_embd, n_label)
        initialise(self.pooler, config)
        initialise(self.classifier, config)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """Logits [B, L]."""
        hidden = self.backbone(ids, mask, segments)
        pooled = torch.tanh(self.pooler(hidden[:, 0]))
        return self.classifier(self.dropout(pooled))  # type: ignore[no-any-return]


class BERTTagger(nn.Module):
    """A label for every token, each from its own vector."""

    def __init__(self, config: BERTConfig, n_label: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = BERT(config)
        self.dropout = nn.Dropout(config.dropout)
        self.tagger = nn.Linear(config.n_embd, n_label)
        initialise(self.tagger, config)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """Logits [B, S, L]."""
        hidden = self.backbone(ids, mask, segments)
        return self.tagger(self.dropout(hidden))  # type: ignore[no-any-return]


class BERTAnswerer(nn.Module):
    """Where the answer to a question begins and ends: a linear layer over every token."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = BERT(config)
        self.span = nn.Linear(config.n_embd, 2)
        initialise(self.span, config)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the first and of the last token of the answer, each [B, S]."""
        start, end = self.span(self.backbone(ids, mask, segments)).unbind(2)
        return start, end


@torch.no_grad()
def initialise(module: nn.Module, config: BERTConfig) -> None:
    """N(0, 0.02) for matrices, zero for biases, as in the released model code.

    A model narrower than BERT-base starts from larger weights: a product of C terms keeps its size
    as long as they shrink with sqrt(C).
    """
    std = _WEIGHT_STD * max(1.0, math.sqrt(_BASE_WIDTH / config.n_embd))
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
