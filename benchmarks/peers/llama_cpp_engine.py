"""llama.cpp through llama-cpp-python's C interface, on a GGUF file written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import Generated, Peer, UnsupportedCaseError, step_by_step
from benchmarks.workspace import Workspace

_TYPES = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
_CHUNK = 512  # tokens that it computes at once; its default


class LlamaCppPeer(Peer):
    name = "llama.cpp"
    module = "llama_cpp"
    distribution = "llama-cpp-python"
    precisions = ("f32", "bf16", "int8", "int4")
    setting = "GGUF in F32, BF16, Q8_0 or Q4_0 by its own quantizer; its cache in f16"

    def prepare(self, work: Workspace, precision: str) -> Path:
        def write(folder: Path) -> None:
            from benchmarks.peers.gguf_file import write_gguf

            write_gguf(work.checkpoint, work.config, folder / "model.gguf")

        plain = work.make("gguf", write) / "model.gguf"
        if precision == "f32":
            return plain

        def quantize(folder: Path) -> None:
            import llama_cpp

            parameters = llama_cpp.llama_model_quantize_default_params()
            parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{_TYPES[precision]}")
            target = str(folder / "model.gguf").encode()
            if llama_cpp.llama_model_quantize(str(plain).encode(), target, parameters) != 0:
                raise UnsupportedCaseError(f"its quantizer fails for {_TYPES[precision]}")

        return work.make(f"gguf-{precision}", quantize) / "model.gguf"

    def load(self, path: Path, precision: str, threads: int, positions: int) -> None:
        import llama_cpp

        self._c: Any = llama_cpp
        self._c.llama_backend_init()
        self._model = self._c.llama_model_load_from_file(
            str(path).encode(), self._c.llama_model_default_params()
        )
        if not self._model:
            raise UnsupportedCaseError("it can't load the file")
        self._vocab = self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model))
        self._threads = threads
        self._contexts: dict[int, Any] = {}
        self._positions = positions

    def _context(self, sequences: int) -> Any:
        """With room for so many sequences; made once."""
        if sequences not in self._contexts:
            parameters = self._c.llama_context_default_params()
            parameters.n_ctx = self._positions * sequences
            parameters.n_batch = _CHUNK
            parameters.n_ubatch = _CHUNK
            parameters.n_seq_max = sequences
            parameters.n_threads = self._threads
            parameters.n_threads_batch = self._threads
            context = self._c.llama_init_from_model(self._model, parameters)
            if not context:
                raise UnsupportedCaseError("it makes no context of this size")
            self._contexts[sequences] = context
        return self._contexts[sequences]

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generated:
        context = self._context(len(prompts))
        self._c.llama_memory_clear(self._c.llama_get_memory(context), True)
        length = 0

        def run(rows: Sequence[Sequence[int]]) -> list[int]:
            nonlocal length
            found = _Rows(self, context).run(rows, length)
            length += len(rows[0])
            return found

        return step_by_step(
            lambda: run(prompts), lambda last: run([[token] for token in last]), new_tokens
        )


class _Rows:
    """One call: tokens of every sequence, cut into chunks."""

    def __init__(self, peer: LlamaCppPeer, context: Any) -> None:
        self._c = peer._c
        self._context = context
        self._vocab = peer._vocab

    def run(self, rows: Sequence[Sequence[int]], position: int) -> list[int]:
        """The next token of each sequence."""
        flat = [
            (token, position + i, sequence, i == len(ids) - 1)
            for sequence, ids in enumerate(rows)
            for i, token in enumerate(ids)
        ]
        found: list[int] = []
        for begin in range(0, len(flat), _CHUNK):
            found += self._decode(flat[begin : begin + _CHUNK])
        return found

    def _decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        batch = self._c.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, (token, position, sequence, wanted) in enumerate(tokens):
                batch.token[i] = token
                batch.pos[i] = position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = wanted
            status = self._c.llama_decode(self._context, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode returns {status}")
        finally:
            self._c.llama_batch_free(batch)
        return [int(self._logits(i).argmax()) for i, (*_, wanted) in enumerate(tokens) if wanted]

    def _logits(self, row: int) -> Any:
        pointer = self._c.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab,))
