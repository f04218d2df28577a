"""A transformers checkpoint as a GGUF file in F32, without a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

# Name in the checkpoint (after the block's prefix): name in the file.
_GPT2_BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_GPT2_REST = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}
_LLAMA_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LLAMA_REST = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def write_gguf(checkpoint: Path, config: dict[str, Any], path: Path) -> None:
    """Raises ValueError for an architecture that is not known here."""
    import gguf

    kind = config["model_type"]
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"no GGUF names for {kind}")
    writer = gguf.GGUFWriter(path, kind)
    (_write_gpt2 if kind == "gpt2" else _write_llama)(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, array in tensors(checkpoint, config):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_gpt2(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _write_llama(writer: Any, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or rope["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])


def tensors(checkpoint: Path, config: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    """(name in the file, elements) of every weight."""
    from safetensors.numpy import load_file

    gpt2 = config["model_type"] == "gpt2"
    block, rest = (_GPT2_BLOCK, _GPT2_REST) if gpt2 else (_LLAMA_BLOCK, _LLAMA_REST)
    prefix = "transformer.h." if gpt2 else "model.layers."
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, array in load_file(file).items():
            stem, _, suffix = name.rpartition(".")
            if name.startswith(prefix):
                index, _, part = stem.removeprefix(prefix).partition(".")
                if part not in block:
                    continue  # a mask that older versions stored
                yield f"blk.{index}.{block[part]}.{suffix}", _arrange(part, array, config)
            elif stem in rest and not (stem == "lm_head" and config["tie_word_embeddings"]):
                yield f"{rest[stem]}.{suffix}", array


def _arrange(part: str, array: Array, config: dict[str, Any]) -> Array:
    """Conv1D's weights are transposed; rotary pairs are neighbours in GGUF's Llama."""
    if part.split(".")[-1] in ("c_attn", "c_proj", "c_fc") and array.ndim == 2:
        return np.ascontiguousarray(array.T)
    if part in ("self_attn.q_proj", "self_attn.k_proj"):
        query = part.endswith("q_proj")
        heads = config["num_attention_heads" if query else "num_key_value_heads"]
        pairs = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))
    return array
