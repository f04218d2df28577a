"""Export of a model's plain forward pass to one ONNX file.

No cache, no positions: the graph is what was trained, with a dynamic batch and length. forms.py
says what goes in and what comes out.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir
import torch
from torch import nn

from kvik_export.errors import ExportError, first_line
from kvik_export.forms import (
    EMBED,
    GENERATE,
    Form,
    as_tensors,
    form_of,
    make_feeds,
    plain_forward,
)
from kvik_export.metadata import ImageFormat, model_metadata
from kvik_export.quiet import quiet
from kvik_export.recurrent import onnx_recurrences
from kvik_export.saving import check_destination, save_model, wants_external_data

if TYPE_CHECKING:
    from kvik_train.config import RunConfig

DEFAULT_OPSET = 23  # the first with Attention and RMSNormalization
OPSETS = (18, 19, 20, 21, 22, 23)


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
    task: str | None = None,
    opset: int = DEFAULT_OPSET,
    external_data: bool | None = None,
) -> ExportResult:
    """Export a model that kvik_train saved, with its tokenizer and settings in the metadata.

    Args:
        checkpoint: the folder of a training run, or the checkpoint.pt in it.
        path: the .onnx file to write; one that is there is replaced when the new one is complete.
        task: None for what the model was trained for; "embed" for a BERT's vectors.
        opset: of the standard operators, one of OPSETS.
        external_data: weights in PATH.data beside the file; None: only if they exceed 2 GiB.

    Raises:
        ExportError: an option is impossible, or torch cannot export the model.
        kvik_train.TrainError: the checkpoint cannot be read.
    """
    from kvik_train import load_checkpoint

    model, config, tokenizer, progress = load_checkpoint(checkpoint)
    form = form_of(config, task)
    # A recurrent language model has no longest text; what it was trained with is no bound.
    bounded = not (config.family == "rnn" and form.task == "generate")
    return _export(
        plain_forward(model, form),
        Path(path),
        form,
        vocab_size=getattr(config.model, "vocab_size", None),
        context_length=getattr(config.model, "context_length", None) if bounded else None,
        family=config.family,
        labels=config.labels if form.task != EMBED else (),
        image=_image_format(config) if form.task == "classify_image" else None,
        tokenizer=tokenizer,
        provenance={
            "preset": config.preset,
            "data": _name_of(config.data.source),
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
    return _export(
        module,
        Path(path),
        GENERATE,
        vocab_size=vocab_size,
        context_length=context_length,
        family=family,
        tokenizer=None if tokenizer is None else Path(tokenizer),
        provenance=provenance or {},
        opset=opset,
        external_data=external_data,
    )


def _export(
    module: nn.Module,
    destination: Path,
    form: Form,
    *,
    vocab_size: int | None,
    context_length: int | None,
    family: str,
    labels: Sequence[str] = (),
    image: ImageFormat | None = None,
    tokenizer: Path | None,
    provenance: Mapping[str, Any],
    opset: int,
    external_data: bool | None,
) -> ExportResult:
    _check_options(destination, opset, vocab_size, context_length)
    start = time.monotonic()
    metadata = model_metadata(
        task=form.task,
        family=family,
        context_length=context_length,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        labels=labels,
        image=image,
        provenance=_provenance(opset, provenance),
    )
    model = _trace(module, form, opset, vocab_size, context_length)
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


def _image_format(config: RunConfig) -> ImageFormat:
    from kvik_train.data.images import IMAGE_MEAN, IMAGE_STD

    return ImageFormat(config.model.image_size, config.model.channels, IMAGE_MEAN, IMAGE_STD)


def _name_of(source: str) -> str:
    """A data set's name; of a file or folder of the user's, the last part of its path."""
    return Path(source).name if Path(source).is_absolute() else source


def _check_options(
    path: Path, opset: int, vocab_size: int | None, context_length: int | None
) -> None:
    if opset not in OPSETS:
        raise ExportError(f"opset is {opset}; it must be one of {', '.join(map(str, OPSETS))}")
    if vocab_size is not None and vocab_size < 1:
        raise ExportError(f"vocab_size is {vocab_size}; it must be at least 1")
    if context_length is not None and context_length < 2:
        raise ExportError(f"context_length is {context_length}; it must be at least 2")
    check_destination(path)


def _provenance(opset: int, more: Mapping[str, Any]) -> dict[str, Any]:
    tools = {name: version(name) for name in ("kvik", "torch", "onnxscript", "onnx-ir")}
    return {**tools, "python": platform.python_version(), "opset": opset, **more}


def _trace(
    module: nn.Module,
    form: Form,
    opset: int,
    vocab_size: int | None,
    context_length: int | None,
) -> onnx_ir.Model:
    """The graph of the module's forward, checked to have the form."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    # No size is 0 or 1, which the exporter would take for constants, and no two are the same
    # unless the context has no room for it.
    shown = {"batch": 2, "sequence": 7, "source": 7, "target": 5}
    longest = context_length or max(shown.values())
    sizes = {name: min(size, longest) if name != "batch" else size for name, size in shown.items()}
    feeds = make_feeds(form.inputs, sizes, vocab_size or 2, seed=0)
    axes = {name: torch.export.Dim(name) for name in form.axes()}
    dynamic = tuple(
        {place: axes[axis] for place, axis in enumerate(item.axes) if isinstance(axis, str)}
        for item in form.inputs
    )
    training = module.training
    module.eval()
    try:
        with quiet(), torch.no_grad(), onnx_recurrences(module, opset):
            program = torch.onnx.export(
                module,
                as_tensors(feeds, device),
                dynamo=True,
                opset_version=opset,
                input_names=[item.name for item in form.inputs],
                output_names=list(form.outputs),
                dynamic_shapes=dynamic,
            )
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"torch cannot export this model: {first_line(error)}") from error
    finally:
        module.train(training)
    assert program is not None  # dynamo=True returns one
    model: onnx_ir.Model = program.model
    _check_signature(model, form)
    return model


def _check_signature(model: onnx_ir.Model, form: Form) -> None:
    inputs, outputs = model.graph.inputs, model.graph.outputs
    if len(inputs) != len(form.inputs) or len(outputs) != len(form.outputs):
        expected = "map token ids to logits" if form is GENERATE else f"be for {form.task}"
        raise ExportError(
            f"the forward has {len(inputs)} inputs and {len(outputs)} outputs; "
            f"it must {expected}: wrap it in a module that does"
        )
    output = outputs[0]
    rank = None if output.shape is None else len(output.shape)
    if output.dtype != onnx_ir.DataType.FLOAT or rank != form.rank:
        what = "[batch, sequence, vocabulary]" if form is GENERATE else f"of rank {form.rank}"
        raise ExportError(
            f"the forward returns {output.dtype} of rank {rank}; "
            f"{form.outputs[0]} are float32 {what}: convert the module with .float()"
        )
    for value, item in zip(inputs, form.inputs, strict=True):
        found = [] if value.shape is None else list(value.shape)
        fixed = [
            axis
            for axis, size in zip(item.axes, found, strict=True)
            if isinstance(axis, str) and isinstance(size, int)
        ]
        if fixed:
            raise ExportError(
                f"the exported graph is for one {fixed[0]} alone: the forward computes with the "
                f"size of {item.name} in a way that torch.export cannot follow"
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
