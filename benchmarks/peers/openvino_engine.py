"""OpenVINO with a stateful model, as its documentation advises for language models.

The traced forward has the cache as inputs and outputs; OpenVINO's own transformation turns those
into state that stays inside. beam_idx reorders it, which is the form its CPU plugin fuses with
scaled-dot-product attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import Generated, Peer, UnsupportedCaseError, step_by_step
from benchmarks.workspace import Workspace

_HINTS = {"f32": "f32", "bf16": "bf16"}


class OpenVinoPeer(Peer):
    name = "openvino"
    module = "openvino"
    distribution = "openvino"
    precisions = ("f32", "bf16", "int8", "int4")
    setting = "stateful, latency hint, its default cache; int8 and int4 (groups of 64) by nncf"

    def prepare(self, work: Workspace, precision: str) -> Path:
        def convert(folder: Path) -> None:
            import openvino

            model = _stateful(work.checkpoint, work.config)
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)

        plain = work.make("openvino", convert) / "model.xml"
        if precision in _HINTS:
            return plain.parent

        def compress(folder: Path) -> None:
            _compress(plain, precision, folder)

        return work.make(f"openvino-{precision}", compress)

    def load(self, path: Path, precision: str, threads: int, positions: int) -> None:
        import openvino

        model = openvino.Core().read_model(path / "model.xml")
        compiled = compile_model(model, precision, threads)
        self._request = compiled.create_infer_request()

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generated:
        self._request.reset_state()
        beams = np.arange(len(prompts), dtype=np.int32)

        def run(ids: Any) -> list[int]:
            self._request.infer({"ids": ids, "beam_idx": beams})
            logits = self._request.get_output_tensor(0).data
            found: list[int] = logits[:, -1].argmax(-1).tolist()
            return found

        return step_by_step(
            lambda: run(np.asarray(prompts, dtype=np.int64)),
            lambda last: run(np.asarray(last, dtype=np.int64)[:, None]),
            new_tokens,
        )


def compile_model(model: Any, precision: str, threads: int) -> Any:
    """For the CPU, for one request at a time. Raises UnsupportedCaseError."""
    import openvino

    refuse_emulation(precision)
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision in _HINTS:
        config["INFERENCE_PRECISION_HINT"] = _HINTS[precision]
    return openvino.Core().compile_model(model, "CPU", config)


def refuse_emulation(precision: str) -> None:
    """Without instructions for bfloat16 it emulates them, a hundred times slower than f32.

    Raises UnsupportedCaseError.
    """
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise UnsupportedCaseError("this CPU has no bfloat16 instructions")


def import_nncf() -> Any:
    """Raises UnsupportedCaseError."""
    try:
        import nncf
    except ImportError:
        raise UnsupportedCaseError("nncf is not installed (pip install nncf)") from None
    return nncf


def _stateful(checkpoint: Path, config: dict[str, Any]) -> Any:
    import openvino
    import torch
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    from benchmarks.peers.cached import (
        FlatCachedForward,
        cache_shape,
        load_model,
        past_names,
        present_names,
    )

    layers, heads, size = cache_shape(config)
    past = [torch.zeros(2, heads, 5, size) for _ in range(2 * layers)]
    with torch.no_grad():
        model = openvino.convert_model(
            FlatCachedForward(load_model(checkpoint)),
            example_input=(torch.zeros(2, 3, dtype=torch.int64), *past),
        )
    ids, *pasts = model.inputs
    ids.get_tensor().set_names({"ids"})
    ids.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    for port, name in zip(model.outputs, ["logits", *present_names(layers)], strict=True):
        port.get_tensor().set_names({name})
    beams = opset13.parameter([-1], np.int32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beams])
    for port, name in zip(pasts, past_names(layers), strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, size]))
        users = port.get_target_inputs()
        reordered = opset13.gather(port.get_node(), beams, opset13.constant(0))
        for user in users:
            user.replace_source_output(reordered.output(0))
    model.validate_nodes_and_infer_types()
    pairs = dict(zip(past_names(layers), present_names(layers), strict=True))
    apply_make_stateful_transformation(model, pairs)
    _start_empty(model, heads, size)
    return model


def _start_empty(model: Any, heads: int, size: int) -> None:
    """Gives each state its first value: no positions, the batch of the ids."""
    from openvino import opset13

    shape = opset13.shape_of(model.input("ids"), output_type="i64")
    batch = opset13.gather(shape, opset13.constant([0]), opset13.constant(0))
    rest = opset13.constant(np.array([heads, 0, size], dtype=np.int64))
    empty = opset13.broadcast(opset13.constant(np.float32(0)), opset13.concat([batch, rest], 0))
    # The order of the cache's dimensions: batch, heads, positions, size.
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty.output(0)])
    model.validate_nodes_and_infer_types()


def _compress(plain: Path, precision: str, folder: Path) -> None:
    nncf = import_nncf()
    import openvino

    model = openvino.Core().read_model(plain)
    modes = nncf.CompressWeightsMode
    if precision == "int8":
        model = nncf.compress_weights(model, mode=modes.INT8_SYM)
    else:
        model = nncf.compress_weights(model, mode=modes.INT4_SYM, group_size=64, ratio=1.0)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
