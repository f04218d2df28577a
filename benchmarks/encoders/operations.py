"""The operations that a case takes at least: products with weights, two for each multiply-add.

Attention, norms and look-ups are not counted: they are computed in fp32 whatever the weights are,
and the ceiling is that of the weights' precision.
"""

from __future__ import annotations

from benchmarks.encoders.inputs import IMAGE, LABELS, VOCAB, Inputs, Sentences

_BASE = (12, 768, 3072)  # layers, width, feed-forward width of BERT-base and ViT-B/16
_TRANSFORMER = (6, 512, 2048)
_PATCH = 16


def operations(model: str, inputs: Inputs) -> int:
    if isinstance(inputs, Sentences):
        return 2 * _translation(inputs)
    if model == "vit-b16":
        patches = (IMAGE[1] // _PATCH) * (IMAGE[2] // _PATCH)
        width = _BASE[1]
        own = patches * IMAGE[0] * _PATCH**2 * width + (patches + 1) * _encoder(*_BASE)
        return 2 * len(inputs["image"]) * (own + width * LABELS)
    return 2 * inputs["input_ids"].size * _encoder(*_BASE)


def _encoder(layers: int, width: int, inner: int) -> int:
    """Multiply-adds for one token: queries, keys, values, output; the feed-forward network."""
    return layers * (4 * width**2 + 2 * width * inner)


def _translation(inputs: Sentences) -> int:
    layers, width, _ = _TRANSFORMER
    source_tokens = sum(map(len, inputs.sources))
    # All hypotheses of a sentence begin with the same token.
    target_tokens = len(inputs.sources) * (1 + (inputs.new_tokens - 1) * inputs.beams)
    keys_and_values = layers * 2 * width**2  # of the attention to the source
    queries_and_output = keys_and_values
    decoder = _encoder(*_TRANSFORMER) + queries_and_output
    return source_tokens * (_encoder(*_TRANSFORMER) + keys_and_values) + target_tokens * (
        decoder + width * VOCAB["transformer-base"]
    )
