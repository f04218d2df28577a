"""onnxruntime on the same file, in f32 and with its own dynamic quantisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.encoders.beam_search import beam_search
from benchmarks.encoders.engines.base import (
    Call,
    EncoderEngine,
    Outputs,
    feeds_of,
    refuse_translation,
    translations,
)
from benchmarks.encoders.inputs import START, Inputs, Sentences
from benchmarks.encoders.models import EncoderFolder
from benchmarks.peers.onnxruntime_plain import quantize_int8, session

REFERENCE_SENTENCES = 4  # of a translation: each is computed anew for every token


class OnnxRuntimeEncoder(EncoderEngine):
    name = "onnxruntime"
    module = "onnxruntime"
    distribution = "onnxruntime"
    precisions = ("f32", "int8")
    setting = "the plain file, all optimisations; int8 dynamic, by output channel"

    def prepare(self, work: EncoderFolder, precision: str) -> Path:
        refuse_translation(work.model)
        if precision == "f32":
            return work.plain

        def quantize(folder: Path) -> None:
            bare = folder / "bare.onnx"
            _without_inner_shapes(work.plain, bare)
            quantize_int8(bare, folder / "model.onnx")
            bare.unlink()

        return work.make("onnxruntime-int8", quantize) / "model.onnx"

    def load(self, path: Path, model: str, precision: str, threads: int) -> None:
        self._session = session(path, threads)

    def ready(self, inputs: Inputs) -> Call:
        feeds = feeds_of(inputs)
        return lambda: self._session.run(None, feeds)[0]

    def reference(self, path: Path, threads: int, inputs: Inputs) -> Outputs:
        """What all engines are compared with, by a search that has no cache to be wrong about."""
        self._session = session(path, threads)
        if not isinstance(inputs, Sentences):
            return self.outputs(self.ready(inputs)())
        best = []
        for source in inputs.sources[:REFERENCE_SENTENCES]:
            ids = np.array([source], np.int64)

            def last_logits(targets: np.ndarray, ids: np.ndarray = ids) -> np.ndarray:
                sources = np.repeat(ids, len(targets), axis=0)
                feeds = {"source_ids": sources, "source_mask": np.ones_like(sources)}
                logits: np.ndarray = self._session.run(
                    ["logits"], {**feeds, "target_ids": targets}
                )[0][:, -1]
                return logits

            best.append(beam_search(last_logits, START, inputs.beams, inputs.new_tokens))
        return translations(best)


def _without_inner_shapes(plain: Path, path: Path) -> None:
    """The quantiser transposes weights and then finds that their noted shapes are wrong."""
    import onnx

    model = onnx.load(plain)
    del model.graph.value_info[:]
    onnx.save(model, path)
