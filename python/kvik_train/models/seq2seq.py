"""A recurrent encoder-decoder with attention.

Luong, Pham and Manning 2015: global attention with the "general" score, over stacks of recurrent
layers whose decoder starts from the encoder's last state (Sutskever et al. 2014). The cells are
GRUs (Cho et al. 2014), and there is no input feeding: so the decoder's states do not wait for
attention, and all target tokens are computed by one recurrence.

Shapes: B sentences, S source and T target tokens, H = n_hidden, V = vocab_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvik_train.models.attention import last_real
from kvik_train.models.checks import check_dropout, check_positive


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The architecture; saved with every checkpoint. The defaults are Luong's sizes."""

    vocab_size: int = 50000
    context_length: int = 512  # longest source and longest target
    n_layer: int = 4  # of the encoder, and of the decoder
    n_embd: int = 1000
    n_hidden: int = 1000
    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_positive(self, "vocab_size", "context_length", "n_layer", "n_embd", "n_hidden")
        check_dropout(self.dropout)


PRESETS: dict[str, Seq2SeqConfig] = {
    "seq2seq-tiny": Seq2SeqConfig(
        vocab_size=400, context_length=64, n_layer=1, n_embd=64, n_hidden=128, dropout=0.0
    ),
    "seq2seq-luong": Seq2SeqConfig(),
}

# The outputs of every encoder layer but the last, each one's last real state: [N, B, H]; and the
# outputs of the last layer: [B, S, H].
Memory = tuple[Tensor, Tensor]


class Seq2Seq(nn.Module):
    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.source_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.target_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = _layers(config)
        self.decoder = _layers(config)
        self.score = nn.Linear(config.n_hidden, config.n_hidden, bias=False)
        self.combine = nn.Linear(2 * config.n_hidden, config.n_hidden, bias=False)
        self.head = nn.Linear(config.n_hidden, config.vocab_size)

    def forward(
        self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] of the token after each of target_ids, and alignments [B, T, S].

        source_ids and source_mask are [B, S]; the mask is 1 at real tokens, and padding stands on
        the right. A row of the alignments says how much each source token counted, and sums to 1.
        """
        return self.align(self.encode(source_ids, source_mask), source_mask, target_ids)

    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Memory:
        """Forward only, so that what stands before the padding never knows of it."""
        x = self.dropout(self.source_embedding(source_ids))
        last = []
        for layer in self.encoder:
            x, _ = layer(x)
            last.append(last_real(x, source_mask))
            x = self.dropout(x)
        return torch.stack(last), x

    def decode(self, memory: Memory, source_mask: Tensor, target_ids: Tensor) -> Tensor:
        return self.align(memory, source_mask, target_ids)[0]

    def align(
        self, memory: Memory, source_mask: Tensor, target_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        first, source = memory
        x = self.dropout(self.target_embedding(target_ids))
        for index, layer in enumerate(self.decoder):
            x, _ = layer(x, first[index : index + 1])
            x = self.dropout(x)
        scores = self.score(x) @ source.transpose(1, 2)  # [B, T, S]
        scores = scores.masked_fill(~source_mask.bool()[:, None], -math.inf)
        alignments = scores.softmax(dim=2)
        context = alignments @ source  # [B, T, H]
        x = torch.tanh(self.combine(torch.cat((context, x), dim=2)))
        return self.head(self.dropout(x)), alignments


def _layers(config: Seq2SeqConfig) -> nn.ModuleList:
    """One module a layer: the decoder starts each from its own layer's state."""
    return nn.ModuleList(
        nn.GRU(config.n_embd if index == 0 else config.n_hidden, config.n_hidden, batch_first=True)
        for index in range(config.n_layer)
    )
