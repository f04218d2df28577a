"""Small torch modules as ONNX files with symbolic batches and lengths, run by three engines."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import kvik


def export(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    axes: Mapping[int, str],
    *,
    dynamo: bool = False,
) -> Path:
    """Export with the axes of every input that `axes` names left open."""
    names = [f"x{index}" for index in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = [dict.fromkeys(axes, torch.export.Dim.AUTO) for _ in inputs]
            torch.onnx.export(
                module, tuple(inputs), path, input_names=names, dynamo=True, opset_version=20,
                dynamic_shapes=shapes, verbose=False, external_data=False,
            )  # fmt: skip
        else:
            torch.onnx.export(
                module, tuple(inputs), str(path), input_names=names, dynamo=False,
                opset_version=17, dynamic_axes={name: dict(axes) for name in names},
            )  # fmt: skip
    return path


def run_onnxruntime(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def assert_three_agree(
    module: nn.Module, path: Path, inputs: Sequence[Tensor], tolerance: float = 1e-5
) -> None:
    """torch = onnxruntime = kvik, relative to the largest element of each output."""
    with torch.inference_mode():
        result = module(*inputs)
    expected = [result] if isinstance(result, Tensor) else list(result)
    feeds = {f"x{index}": x.numpy() for index, x in enumerate(inputs)}
    session = kvik.InferenceSession(path, threads=2)
    names = [value.name for value in session.get_inputs()]
    feeds = {name: feeds[name] for name in names}
    found, peer = session.run(None, feeds), run_onnxruntime(path, feeds)
    assert len(found) == len(peer) == len(expected)
    for mine, theirs, truth in zip(found, peer, expected, strict=True):
        assert mine.shape == theirs.shape == tuple(truth.shape)
        bound = tolerance * max(1.0, float(truth.abs().max()))
        np.testing.assert_allclose(mine, truth.numpy(), rtol=0, atol=bound)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=bound)
