"""Export of a model's plain forward pass, token ids -> logits, to one ONNX file.

No cache, no mask, no positions: the graph is what was trained, with a dynamic batch and length.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch import nn

from kvik_export.errors import ExportError, first_line
from kvik_export.metadata import generation_metadata
from kvik_export.quiet import quiet
from kvik_export.saving import check_destination, save_model, wants_external_data

DEFAULT_OPSET = 23  # the first with Attention and RMSNormalization
OPSETS = (18, 19, 20, 21, 22, 23)
INPUT = "ids"  # int64 [batch, sequence]
OUTPUT = "logits"  # float32 [batch, sequence, vocabulary]


@dataclass(frozen=True)
class ExportResult:
    path: Path
    bytes: int  # of the file, and of the weights beside it if there are any
    external_data: Path | None
    opset: int
    parameters: int  # trained values; a tied matrix counts once
    seconds: float

    def summary(self) -> str:
        beside = f" with {self.external_data.name}" if self.external_data else ""
        return (
            f"{self.path}{beside}: {self.bytes / 2**20:.1f} MiB, opset {self.opset}, "
            f"{self.parameters:,} parameters, {self.seconds:.1f} s"
        )


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    opset: int = DEFAULT_OPSET,
    external_data: bool | None = None,
) -> ExportResult:
    """Export a model that kvik_train saved, with its tokenizer and settings in the metadata.

    Args:
        checkpoint: the folder of a training run, or the checkpoint.pt in it.
        path: the .onnx file to write; one that is there is replaced when the new one is complete.
        opset: of the standard operators, one of OPSETS.
        external_data: weights in PATH.data beside the file; None: only if they exceed 2 GiB.

    Raises:
        ExportError: an option is impossible, or torch cannot export the model.
        kvik_train.TrainError: the checkpoint cannot be read.
    """
    from kvik_train import load_checkpoint

    model, config, tokenizer, progress = load_checkpoint(checkpoint)
    return export_module(
        model,
        path,
        vocab_size=config.model.vocab_size,
        context_length=config.model.context_length,
        family=config.family,
        tokenizer=tokenizer,
        provenance={
            "preset": config.preset,
            "data": config.data.source,
            "step": progress.step,
            "tokens": progress.tokens,
            "train_loss": progress.train_loss,
            "validation_loss": progress.validation_loss,
        },
        opset=opset,
        external_data=external_data,
    )


def export_module(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    context_length: int,
    family: str = "unknown",
    tokenizer: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    opset: int = DEFAULT_OPSET,
    external_data: bool | None = None,
) -> ExportResult:
    """Export any module whose forward maps ids int64 [B, S] to logits float32 [B, S, V].

    Args:
        module: called as module(ids); exported in eval mode and left in the mode it was in.
        vocab_size: V.
        context_length: the longest S.
        tokenizer: a tokenizer.json to put into the file.
        provenance: added to the versions in kvik.provenance; plain JSON values.
        (The others are as in export_checkpoint.)
    """
    destination = Path(path)
    _check_options(destination, opset, vocab_size, context_length)
    start = time.monotonic()
    metadata = generation_metadata(
        family=family,
        context_length=context_length,
        vocab_size=vocab_size,
        tokenizer=None if tokenizer is None else Path(tokenizer),
        provenance=_provenance(opset, provenance or {}),
    )
    model = _trace(module, opset, vocab_size, context_length)
    _strip(model)
    _share_transposed(model)
    model.metadata_props.update(metadata)
    model.producer_name = "kvik_export"
    model.producer_version = version("kvik")
    external_data = wants_external_data(model, external_data)
    beside = save_model(model, destination, external=external_data)
    size = destination.stat().st_size + (beside.stat().st_size if beside else 0)
    return ExportResult(
        path=destination,
        bytes=size,
        external_data=beside,
        opset=opset,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        seconds=time.monotonic() - start,
    )


def _check_options(path: Path, opset: int, vocab_size: int, context_length: int) -> None:
    if opset not in OPSETS:
        raise ExportError(f"opset is {opset}; it must be one of {', '.join(map(str, OPSETS))}")
    if vocab_size < 1:
        raise ExportError(f"vocab_size is {vocab_size}; it must be at least 1")
    if context_length < 2:
        raise ExportError(f"context_length is {context_length}; it must be at least 2")
    check_destination(path)


def _provenance(opset: int, more: Mapping[str, Any]) -> dict[str, Any]:
    tools = {name: version(name) for name in ("kvik", "torch", "onnxscript", "onnx-ir")}
    return {**tools, "python": platform.python_version(), "opset": opset, **more}


def _trace(module: nn.Module, opset: int, vocab_size: int, context_length: int) -> onnx_ir.Model:
    """The graph of module(ids), checked to be one input and one float32 output."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    # Neither size is 0 or 1, which the exporter would take for constants.
    length = min(7, context_length)
    ids = (torch.arange(2 * length, device=device) % vocab_size).reshape(2, length)
    training = module.training
    module.eval()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (ids,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")},),
            )
    except Exception as error:
        raise ExportError(f"torch cannot export this model: {first_line(error)}") from error
    finally:
        module.train(training)
    assert program is not None  # dynamo=True returns one
    model: onnx_ir.Model = program.model
    _check_signature(model)
    return model


def _check_signature(model: onnx_ir.Model) -> None:
    outputs = model.graph.outputs
    if len(model.graph.inputs) != 1 or len(outputs) != 1:
        raise ExportError(
            f"the forward has {len(model.graph.inputs)} inputs and {len(outputs)} outputs; "
            "it must map token ids to logits: wrap it in a module that does"
        )
    output = outputs[0]
    rank = None if output.shape is None else len(output.shape)
    if output.dtype != onnx_ir.DataType.FLOAT or rank != 3:
        raise ExportError(
            f"the forward returns {output.dtype} of rank {rank}; "
            "logits are float32 [batch, sequence, vocabulary]: convert the module with .float()"
        )


def _strip(model: onnx_ir.Model) -> None:
    """Take out what torch notes about the Python source of each node.

    Stack traces hold the paths of the machine, and would outweigh a small model.
    """
    model.doc_string = None
    for graph in [model.graph, *(function.graph for function in model.functions.values())]:
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in [*graph.inputs, *graph.initializers.values()]:
            value.metadata_props.clear()
            value.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None


def _share_transposed(model: onnx_ir.Model) -> None:
    """Store a matrix once that the graph holds as it is and transposed.

    With tied embeddings the exporter keeps [V, C] for the lookup and folds a copy [C, V] for the
    vocabulary projection: a third of GPT-2's parameters. Engines fold the Transpose when they load.
    """
    graph = model.graph
    matrices = [
        (value, value.const_value.numpy())
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype == onnx_ir.DataType.FLOAT
        and len(value.const_value.shape) == 2
    ]
    for copy, columns in matrices:
        for original, rows in matrices:
            is_transpose = (
                original is not copy
                and original.name in graph.initializers
                and copy.is_initializer()
                and min(rows.shape) > 1
                and rows.shape == columns.shape[::-1]
                and np.array_equal(rows, columns.T)
            )
            if is_transpose and _is_parameter(original) and not _is_parameter(copy):
                transpose = onnx_ir.node("Transpose", [original], attributes={"perm": [1, 0]})
                transpose.outputs[0].name = f"{original.name}.transposed"
                graph.insert_before(graph[0], transpose)
                copy.replace_all_uses_with(transpose.outputs[0])
                del graph.initializers[str(copy.name)]
                break


def _is_parameter(value: onnx_ir.Value) -> bool:
    """Whether it is named as a parameter of the module; folded values are val_7 and the like."""
    return value.name is not None and not value.name.startswith("val_")
