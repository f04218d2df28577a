"""Recurrent language models: simple RNN, LSTM and GRU.

Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014. Dropout between the layers only, as
in Zaremba, Sutskever and Vinyals 2014, whose two configurations are presets.

Shapes: B sequences, S tokens each, V = vocab_size, H = n_hidden, N = n_layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kvik_train.errors import TrainError
from kvik_train.models.checks import check_choice, check_dropout, check_positive

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True)
class RNNConfig:
    """The architecture; saved with every checkpoint. The defaults are Zaremba's medium LSTM."""

    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    vocab_size: int = 10000
    context_length: int = 35  # tokens through which training propagates back; running has no limit
    n_layer: int = 2
    n_embd: int = 650
    n_hidden: int = 650
    tie_weights: bool = False  # the vocabulary projection is the token embedding
    dropout: float = 0.5
    initial_range: float = 0.05  # uniform; 0 leaves torch's own choice, 1 / sqrt(H)

    def __post_init__(self) -> None:
        check_choice("cell", self.cell, tuple(CELLS))
        check_positive(self, "vocab_size", "context_length", "n_layer", "n_embd", "n_hidden")
        check_dropout(self.dropout)
        if self.tie_weights and self.n_embd != self.n_hidden:
            raise TrainError(
                f"tied weights need n_embd {self.n_embd} and n_hidden {self.n_hidden} to be equal"
            )


def _tiny(cell: Literal["rnn", "lstm", "gru"]) -> RNNConfig:
    return RNNConfig(
        cell, vocab_size=384, context_length=64, n_layer=2, n_embd=64, n_hidden=256, dropout=0.0,
        initial_range=0.0,
    )  # fmt: skip


PRESETS: dict[str, RNNConfig] = {
    "rnn-tiny": _tiny("rnn"),
    "lstm-tiny": _tiny("lstm"),
    "gru-tiny": _tiny("gru"),
    "lstm-medium": RNNConfig(),
    "lstm-large": RNNConfig(n_embd=1500, n_hidden=1500, dropout=0.65, initial_range=0.04),
}


class RNN(nn.Module):
    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrent = CELLS[config.cell](
            config.n_embd,
            config.n_hidden,
            config.n_layer,
            batch_first=True,
            dropout=config.dropout if config.n_layer > 1 else 0.0,
        )
        self.head = nn.Linear(config.n_hidden, config.vocab_size)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight
        self.initialise()

    def forward(self, ids: Tensor, state: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of the token after each one: ids [B, S] -> [B, S, V], from a state of zeros.

        With `state` [K, N, B, H], that of the tokens before, also the state after the last token;
        K is 2 for LSTM (hidden and cell state), else 1.
        """
        x = self.dropout(self.token_embedding(ids))
        if state is None:
            y, _ = self.recurrent(x)  # [B, S, H]
            return self.head(self.dropout(y))  # type: ignore[no-any-return]
        parts = tuple(part.contiguous() for part in state)  # each [N, B, H]
        y, after = self.recurrent(x, parts if len(parts) == 2 else parts[0])
        after = torch.stack(after) if isinstance(after, tuple) else after[None]
        return self.head(self.dropout(y)), after

    def zero_state(self, batch: int) -> Tensor:
        """[K, N, B, H]."""
        parts = 2 if self.config.cell == "lstm" else 1
        shape = (parts, self.config.n_layer, batch, self.config.n_hidden)
        return torch.zeros(shape, device=self.head.weight.device)

    @torch.no_grad()
    def initialise(self) -> None:
        if self.config.initial_range:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -self.config.initial_range, self.config.initial_range)
