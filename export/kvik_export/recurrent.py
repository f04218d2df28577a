"""torch's RNN, LSTM and GRU as ONNX's operators of these names.

torch.export would unroll their loops for the length that it was shown. Here each layer becomes one
node, whose length stays open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kvik_export.errors import ExportError

# Where each gate of ONNX's order stands in torch's: i f g o -> i o f g; r z n -> z r n.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
_SINCE = {18: 14, 19: 14, 20: 14, 21: 14, 22: 22, 23: 22}  # the operators' version in each opset


@contextmanager
def onnx_recurrences(module: nn.Module, opset: int) -> Iterator[None]:
    """While the context lasts, every recurrent layer of the module is spelt as ONNX does."""
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.RNNBase)
    ]
    try:
        for parent, name, child in found:
            setattr(parent, name, _Recurrence(child, opset))
        yield
    finally:
        for parent, name, child in found:
            setattr(parent, name, child)


class _Recurrence(nn.Module):
    """x [B, S, I] and a state [N, B, H] -> the last layer's states [B, S, H]."""

    def __init__(self, original: nn.RNNBase, opset: int) -> None:
        super().__init__()
        self.kind = type(original).__name__
        self.layers = original.num_layers
        self.hidden = original.hidden_size
        self.version = _SINCE[opset]
        plain = not original.bidirectional and original.batch_first and original.bias
        relu = getattr(original, "nonlinearity", "tanh") != "tanh"
        if not plain or relu or original.proj_size:
            raise ExportError(
                f"this {self.kind} cannot be exported: it must be forward, batch_first, with "
                "biases, without projection, and a simple RNN with tanh"
            )
        for layer in range(self.layers):
            for name, parts in (("W", ("weight_ih",)), ("R", ("weight_hh",)),
                                ("B", ("bias_ih", "bias_hh"))):  # fmt: skip
                values = [self._gates(original, f"{part}_l{layer}") for part in parts]
                self.register_buffer(f"{name}{layer}", torch.cat(values)[None])

    def _gates(self, original: nn.RNNBase, name: str) -> Tensor:
        order = _GATES[self.kind]
        chunks = getattr(original, name).detach().chunk(len(order))
        return torch.cat([chunks[place] for place in order])

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, None]:
        x = x.transpose(0, 1)  # [S, B, I], the layout that engines have
        length, batch, _ = x.shape
        attributes: dict[str, Any] = {"hidden_size": self.hidden}
        if self.kind == "GRU":
            attributes["linear_before_reset"] = 1
        last = (1, batch, self.hidden)
        shapes = [(length, 1, batch, self.hidden), last, last][: 3 if self.kind == "LSTM" else 2]
        for layer in range(self.layers):
            weights = [getattr(self, f"{name}{layer}") for name in "WRB"]
            start = [] if state is None else [None, state[layer : layer + 1]]  # no lengths
            outputs = torch.onnx.ops.symbolic_multi_out(
                self.kind, [x, *weights, *start], attributes, dtypes=[x.dtype] * len(shapes),
                shapes=shapes, version=self.version,
            )  # fmt: skip
            x = outputs[0].squeeze(1)
        return x.transpose(0, 1), None
