"""A model's forward with an explicit cache, as engines without a proof need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class CachedForward(nn.Module):
    """ids [B, S] and the cached keys and values of P positions -> last logits, new cache.

    Inputs: ids int64; then for each layer keys and values, float32 [B, kv_heads, P, head_dim].
    Outputs: logits float32 [B, 1, V] of the last position, as generation needs them; then keys and
    values of P + S positions. The mask is made here, so that no library's mask code is traced.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        from transformers import cache_utils

        library: Any = cache_utils  # its classes have no types
        cache = library.DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer = library.DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values  # not concatenated with nothing
            cache.layers.append(layer)
        before = past[0].shape[2]
        positions = torch.arange(ids.shape[1]) + before
        seen = torch.arange(ids.shape[1] + before)
        visible = seen[None, None, None, :] <= positions[None, None, :, None]
        result = self.model(
            input_ids=ids,
            position_ids=positions[None],
            attention_mask=visible,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        made: list[Tensor] = []
        for layer in result.past_key_values.layers:
            made += [layer.keys, layer.values]
        return (result.logits, *made)


class FlatCachedForward(CachedForward):
    """The same with the cache as separate arguments, for tracers that know no lists."""

    def forward(self, ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(ids, list(past))


def cache_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    """Layers, heads of keys and values, their size; from a config.json."""
    layers = config.get("num_hidden_layers") or config["n_layer"]
    heads = config.get("num_attention_heads") or config["n_head"]
    width = config.get("hidden_size") or config["n_embd"]
    return layers, config.get("num_key_value_heads") or heads, width // heads


def load_model(checkpoint: Path) -> nn.Module:
    """The checkpoint as tools that quantise products like it.

    nn.Linear throughout (GPT-2's Conv1D hides its products), and a projection to the vocabulary of
    its own (a tied one is a transposed embedding table, which they leave as it is).
    """
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="sdpa"
    )
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Conv1D":
                setattr(module, name, _linear(child))
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    head.weight = nn.Parameter(head.weight.detach().clone())
    return model.eval()


def _linear(conv: Any) -> nn.Linear:
    """Conv1D keeps its weights [inputs, outputs]."""
    inputs, outputs = conv.weight.shape
    linear = nn.Linear(inputs, outputs)
    linear.weight = nn.Parameter(conv.weight.detach().t().contiguous())
    linear.bias = nn.Parameter(conv.bias.detach())
    return linear


def past_names(layers: int) -> list[str]:
    return [f"past.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def present_names(layers: int) -> list[str]:
    return [f"present.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def export_cached(checkpoint: Path, config: dict[str, Any], path: Path, opset: int = 18) -> None:
    """CachedForward as ONNX, with dynamic batch, length and past."""
    layers, heads, size = cache_shape(config)
    past = [torch.zeros(2, heads, 5, size) for _ in range(2 * layers)]
    batch, length, before = (
        torch.export.Dim("batch", max=64),
        torch.export.Dim("length", max=4096),
        torch.export.Dim("past", max=4096),
    )
    torch.onnx.export(
        CachedForward(load_model(checkpoint)),
        (torch.zeros(2, 3, dtype=torch.int64), past),
        str(path),
        input_names=["ids", *past_names(layers)],
        output_names=["logits", *present_names(layers)],
        dynamic_shapes=({0: batch, 1: length}, [{0: batch, 2: before} for _ in past]),
        opset_version=opset,
        dynamo=True,
        external_data=True,
        verbose=False,
    )
