"""The kvik.* entries of metadata_props: what generation needs beyond the graph.

key                   value
kvik.format           version of this table
kvik.task             "text-generation"
kvik.family           model family of kvik_train, e.g. "gpt"
kvik.context_length   longest sequence, in tokens
kvik.tokenizer        the text of tokenizer.json
kvik.special_tokens   JSON object: text of each special token -> its id
kvik.eos_token_ids    JSON list: ids that end a text
kvik.generation       JSON object: defaults of sampling settings
kvik.provenance       JSON object: versions of what made the file, training step, losses

Nothing here depends on the time or the machine: equal inputs give equal files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvik_export.errors import ExportError, first_line

FORMAT = "1"
END_OF_TEXT = "<|endoftext|>"  # the token with which kvik_train ends a document
# What a small model reads best with; every setting of a call goes before it.
GENERATION_DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40}


def generation_metadata(
    *,
    family: str,
    context_length: int,
    vocab_size: int,
    tokenizer: Path | None,
    provenance: Mapping[str, Any],
    generation: Mapping[str, Any] = GENERATION_DEFAULTS,
) -> dict[str, str]:
    """The table above for one model.

    Raises:
        ExportError: the tokenizer cannot be read, or has ids that the model has no row for.
    """
    entries = {
        "kvik.format": FORMAT,
        "kvik.task": "text-generation",
        "kvik.family": family,
        "kvik.context_length": str(context_length),
        "kvik.generation": compact(generation),
        "kvik.provenance": compact(provenance),
    }
    if tokenizer is not None:
        entries |= _tokenizer_entries(tokenizer, vocab_size)
    return entries


def compact(value: Any) -> str:
    """JSON without spaces, keys sorted."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _tokenizer_entries(path: Path, vocab_size: int) -> dict[str, str]:
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises Exception itself
        raise ExportError(
            f"{path} is not a readable tokenizer.json: {first_line(error)}"
        ) from error
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size > vocab_size:
        raise ExportError(
            f"{path} has {size} tokens but the model has {vocab_size}; "
            "it belongs to another model: use the tokenizer that this one was trained with"
        )
    special = {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    end = tokenizer.token_to_id(END_OF_TEXT)
    return {
        "kvik.tokenizer": text,
        "kvik.special_tokens": compact(special),
        "kvik.eos_token_ids": compact([] if end is None else [end]),
    }
