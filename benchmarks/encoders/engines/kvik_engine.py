"""This engine, through its public package, on the plain file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encoders.engines.base import Call, EncoderEngine, Outputs, translations
from benchmarks.encoders.inputs import Inputs, Sentences
from benchmarks.encoders.models import EncoderFolder, word


class KvikEncoder(EncoderEngine):
    name = "kvik"
    module = "kvik"
    distribution = "kvik"
    precisions = ("f32", "bf16", "int8", "int4")
    setting = "the plain file; Model.encode for texts, InferenceSession for images, Model.translate"

    def prepare(self, work: EncoderFolder, precision: str) -> Path:
        return work.plain

    def load(self, path: Path, model: str, precision: str, threads: int) -> None:
        import kvik

        weights: Any = precision
        self._path, self._precision, self._threads = path, precision, threads
        self._session: kvik.InferenceSession | None = None
        self._model: kvik.Model | None = None
        if model == "vit-b16":
            self._session = kvik.InferenceSession(path, threads, weights=weights)
        else:
            self._model = kvik.load(path, threads=threads, weights=weights)

    def ready(self, inputs: Inputs) -> Call:
        if isinstance(inputs, Sentences):
            model = self._loaded()
            texts = [" ".join(map(word, source)) for source in inputs.sources]
            return lambda: model.translate(
                texts, beams=inputs.beams, n_best=1, max_new_tokens=inputs.new_tokens
            )
        if self._session is not None:
            session = self._session
            return lambda: session.run(None, inputs)[0]
        model, ids = self._loaded(), list(inputs["input_ids"])
        # The mask hides nothing and all types are 0: what the engine supplies by itself.
        return lambda: model.encode(ids)["last_hidden_state"]

    def outputs(self, result: Any) -> Outputs:
        if isinstance(result, np.ndarray):
            return {"output": result}
        if isinstance(result[0], np.ndarray):
            return {"output": np.stack(result)}
        return translations([(best.ids, best.log_probability) for [best] in result])

    def isa(self) -> str:
        isa: str = self._loaded().info.isa
        return isa

    def peak_operations(self) -> float:
        """Operations per second on operands of this precision, measured now."""
        from kvik.bench.machine import measure_ceilings

        return measure_ceilings(self._loaded().info).peak(self._precision)

    def _loaded(self) -> Any:
        """The model; beside a session for its figures alone."""
        import kvik

        if self._model is None:
            weights: Any = self._precision
            self._model = kvik.load(self._path, threads=self._threads, weights=weights)
        return self._model
