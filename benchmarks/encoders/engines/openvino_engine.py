"""OpenVINO on the same file; int8 calibrated by nncf, as its documentation advises for encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.encoders.engines.base import Call, EncoderEngine, feeds_of, refuse_translation
from benchmarks.encoders.inputs import Inputs, make_inputs
from benchmarks.encoders.models import EncoderFolder
from benchmarks.encoders.plan import Case
from benchmarks.peers.openvino_engine import compile_model, import_nncf, refuse_emulation

_CALIBRATION = 8  # inputs: the weights are random, and so is what they are shown
_FIRST_SEED = 1000  # of inputs that no run is measured on
_CALIBRATION_TOKENS = 128


class OpenVinoEncoder(EncoderEngine):
    name = "openvino"
    module = "openvino"
    distribution = "openvino"
    precisions = ("f32", "bf16", "int8")
    setting = "the plain file, latency hint, shapes fixed; int8 weights and activations by nncf"

    def prepare(self, work: EncoderFolder, precision: str) -> Path:
        refuse_translation(work.model)
        if precision != "int8":
            return work.plain
        quantized = work.make("openvino-int8", lambda folder: _quantize(work, folder))
        return quantized / "model.xml"

    def load(self, path: Path, model: str, precision: str, threads: int) -> None:
        import openvino

        refuse_emulation(precision)
        self._precision, self._threads = precision, threads
        self._source = openvino.Core().read_model(path)

    def ready(self, inputs: Inputs) -> Call:
        feeds = feeds_of(inputs)
        fixed: Any = self._source.clone()
        fixed.reshape({name: list(array.shape) for name, array in feeds.items()})
        request = compile_model(fixed, self._precision, self._threads).create_infer_request()
        return lambda: request.infer(feeds)[0]


def _quantize(work: EncoderFolder, folder: Path) -> None:
    nncf = import_nncf()
    import openvino

    case = Case("", work.model, 1, (_CALIBRATION_TOKENS, _CALIBRATION_TOKENS))
    seeds = range(_FIRST_SEED, _FIRST_SEED + _CALIBRATION)
    shown = nncf.Dataset([make_inputs(case, seed) for seed in seeds])
    model = nncf.quantize(
        openvino.Core().read_model(work.plain),
        shown,
        subset_size=_CALIBRATION,
        model_type=nncf.ModelType.TRANSFORMER,
    )
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
