"""The engines that are compared, each as one function: token ids [S] -> logits [S, V]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from kvik_export.errors import ExportError, first_line

if TYPE_CHECKING:
    import onnxruntime

Logits = npt.NDArray[np.float32]
Ids = Sequence[int]


class Engine(Protocol):
    """Logits of one whole sequence, computed from nothing."""

    def __call__(self, ids: Ids) -> Logits: ...


def onnxruntime_session(
    model: str | bytes, *, threads: int | None = None, optimize: bool = True, folder: str = ""
) -> onnxruntime.InferenceSession:
    """A CPU session; `folder` is where external data lies when the model is given as bytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnxruntime_engine(path: Path, threads: int | None = None) -> Engine:
    """Onnxruntime on the file as it stands."""
    try:
        session = onnxruntime_session(str(path), threads=threads)
    except Exception as error:  # its exceptions have no public base
        raise ExportError(f"onnxruntime cannot load {path}: {first_line(error)}") from error
    name, output = token_input(session, path), session.get_outputs()[0].name

    def run(ids: Ids) -> Logits:
        feed = {name: np.asarray([ids], dtype=np.int64)}
        logits: Logits = session.run([output], feed)[0][0]
        return logits

    return run


def token_input(session: onnxruntime.InferenceSession, path: Path) -> str:
    """The name of the one int64 input [batch, sequence] of a plain forward."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(int64)" or len(inputs[0].shape) != 2:
        found = ", ".join(f"{value.name}: {value.type} {value.shape}" for value in inputs)
        raise ExportError(
            f"{path} takes {found or 'no input'}; verify compares plain forwards, "
            "which take token ids int64 [batch, sequence] alone"
        )
    return str(inputs[0].name)


def torch_engine(checkpoint: Path) -> Engine:
    """The PyTorch model of a checkpoint, in float32 on the CPU."""
    import torch

    from kvik_train import load_checkpoint

    model = load_checkpoint(checkpoint)[0]

    def run(ids: Ids) -> Logits:
        with torch.inference_mode():
            logits: Logits = model(torch.tensor([list(ids)])).float().numpy()[0]
        return logits

    return run


def by_prefix(engine: Engine, ids: Ids) -> Logits:
    """Row i from a run over ids[:i + 1] alone: what generation without a cache computes."""
    return np.stack([engine(ids[: end + 1])[-1] for end in range(len(ids))])
