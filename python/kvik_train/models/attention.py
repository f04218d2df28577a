"""Multi-head attention and the masks that go with it, for the models that see whole sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V in H heads (Vaswani et al. 2017, section 3.2).

    C channels, H heads, D = C / H. Queries come from x [B, T, C], keys and values from
    source [B, S, C]; without a source, from x itself.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout_p = dropout  # of the attention weights
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """[B, T, C]. `mask` is boolean [B, 1, 1, S]: True where a key may be seen."""
        source = x if source is None else source
        if mask is not None:
            # A view; onnxruntime's Attention does not repeat a mask for the queries by itself.
            mask = mask.expand(-1, -1, x.shape[1], -1)  # [B, 1, T, S]
        y = F.scaled_dot_product_attention(
            self._split(self.query(x)),  # [B, H, T, D]
            self._split(self.key(source)),  # [B, H, S, D]
            self._split(self.value(source)),
            attn_mask=mask,
            dropout_p=self.dropout_p if self.training else 0.0,
            is_causal=causal,
        )
        return self.output(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        return x.view(batch, length, self.heads, channels // self.heads).transpose(1, 2)


def visible_keys(mask: Tensor) -> Tensor:
    """What `Attention` takes, from a mask of integers [B, S] that is 1 at real tokens."""
    return mask.bool()[:, None, None, :]


def last_real(x: Tensor, mask: Tensor) -> Tensor:
    """The vector at the last real token of each row: x [B, S, C], mask [B, S] -> [B, C].

    Padding stands on the right.
    """
    last = mask.sum(dim=1, dtype=torch.int64) - 1  # [B]
    index = last[:, None, None].expand(-1, 1, x.shape[2])  # [B, 1, C]
    return x.gather(1, index).squeeze(1)
