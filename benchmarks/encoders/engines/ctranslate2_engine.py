"""CTranslate2 with its own form of the Transformer, built from the checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.encoders.engines.base import Call, EncoderEngine, Outputs, translations
from benchmarks.encoders.inputs import START, Inputs, Sentences
from benchmarks.encoders.models import EncoderFolder, load_module, vocabulary, word
from benchmarks.peers.base import UnsupportedCaseError
from benchmarks.peers.ctranslate2_engine import TYPES

_END = 2  # a word like any other: it takes the end's place, which every vocabulary must have
_UNKNOWN = 0


class CTranslate2Translator(EncoderEngine):
    name = "ctranslate2"
    module = "ctranslate2"
    distribution = "ctranslate2"
    precisions = ("f32", "int8")
    setting = "built from the checkpoint; shortest and longest translation the same"

    def prepare(self, work: EncoderFolder, precision: str) -> Path:
        if work.model != "transformer-base":
            raise UnsupportedCaseError("not measured with encoders alone")
        checkpoint = work.checkpoint

        def convert(folder: Path) -> None:
            spec = _spec(load_module(work.model, checkpoint))
            spec.validate()
            spec.optimize(quantization=TYPES[precision])
            spec.save(str(folder))

        return work.make(f"ctranslate2-{precision}", convert)

    def load(self, path: Path, model: str, precision: str, threads: int) -> None:
        import ctranslate2

        self._translator: Any = ctranslate2.Translator(
            str(path), device="cpu", compute_type=TYPES[precision],
            inter_threads=1, intra_threads=threads,
        )  # fmt: skip

    def ready(self, inputs: Inputs) -> Call:
        assert isinstance(inputs, Sentences)
        texts = [[word(token) for token in source] for source in inputs.sources]
        return lambda: self._translator.translate_batch(
            texts,
            beam_size=inputs.beams,
            length_penalty=0,  # all are of the same length: the sum of the logarithms
            min_decoding_length=inputs.new_tokens,
            max_decoding_length=inputs.new_tokens,
            return_scores=True,
        )

    def outputs(self, result: Any) -> Outputs:
        ids = {text: token for token, text in enumerate(vocabulary())}
        return translations(
            [([ids[text] for text in one.hypotheses[0]], one.scores[0]) for one in result]
        )


def _spec(module: Any) -> Any:
    """Post-LN, ReLU, sinusoidal positions, one matrix for both embeddings and the projection."""
    from ctranslate2.specs import TransformerSpec

    config = module.config
    spec: Any = TransformerSpec.from_config(config.n_layer, config.n_head, pre_norm=False)
    table = _array(module.embedding.weight)
    for side in (spec.encoder, spec.decoder):
        side.scale_embeddings = math.sqrt(config.n_embd)
        side.position_encodings.encodings = _array(module.positions)
        embeddings = side.embeddings
        (embeddings[0] if isinstance(embeddings, list) else embeddings).weight = table
    spec.decoder.projection.weight = table
    for to, layer in zip(spec.encoder.layer, module.encoder, strict=True):
        _set_layer(to, layer)
    for to, layer in zip(spec.decoder.layer, module.decoder, strict=True):
        _set_layer(to, layer)
        cross = layer.cross_attention
        _set_linear(to.attention.linear[0], cross.query)
        _set_linear(to.attention.linear[1], cross.key, cross.value)
        _set_linear(to.attention.linear[2], cross.output)
        _set_norm(to.attention.layer_norm, layer.cross_attention_norm)
    words = vocabulary()
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.config.bos_token = spec.config.decoder_start_token = word(START)
    spec.config.eos_token = word(_END)
    spec.config.unk_token = word(_UNKNOWN)
    spec.config.add_source_bos = spec.config.add_source_eos = False
    return spec


def _set_layer(to: Any, layer: Any) -> None:
    own = layer.attention
    _set_linear(to.self_attention.linear[0], own.query, own.key, own.value)
    _set_linear(to.self_attention.linear[1], own.output)
    _set_norm(to.self_attention.layer_norm, layer.attention_norm)
    _set_linear(to.ffn.linear_0, layer.feed_forward.input)
    _set_linear(to.ffn.linear_1, layer.feed_forward.output)
    _set_norm(to.ffn.layer_norm, layer.feed_forward_norm)


def _set_linear(to: Any, *layers: Any) -> None:
    """Several layers of the same input become one, their outputs one after the other."""
    import torch

    to.weight = _array(torch.cat([layer.weight for layer in layers]))
    to.bias = _array(torch.cat([layer.bias for layer in layers]))


def _set_norm(to: Any, norm: Any) -> None:
    to.gamma, to.beta = _array(norm.weight), _array(norm.bias)


def _array(tensor: Any) -> Any:
    return tensor.detach().numpy()
