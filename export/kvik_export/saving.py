"""Writing a model: checked first, then put in place as a whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
import onnx_ir

from kvik_export.errors import ExportError, first_line

# A protobuf message ends at 2 GiB; the graph itself takes a part of it.
INLINE_LIMIT = 2**31 - 2**24


def check_destination(path: Path) -> None:
    """An ExportError where no file can be written at `path`."""
    if path.is_dir():
        raise ExportError(f"{path} is a folder; name the .onnx file to write")
    if not path.parent.is_dir():
        raise ExportError(f"there is no folder {path.parent}; make it, or write somewhere else")


def wants_external_data(model: onnx_ir.Model, wanted: bool | None) -> bool:
    """Whether the weights go into a file of their own; None: only if they exceed 2 GiB."""
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values()
                  if value.const_value is not None)  # fmt: skip
    if wanted is None:
        return weights > INLINE_LIMIT
    if not wanted and weights > INLINE_LIMIT:
        raise ExportError(
            f"the weights take {weights / 2**30:.1f} GiB and one file holds 2 GiB; "
            "leave external data on"
        )
    return wanted


def save_model(model: onnx_ir.Model, destination: Path, *, external: bool) -> Path | None:
    """Write, check, and only then put in place; the file of weights beside it, or None.

    Two files cannot change places in one step. The old model goes first and the new one comes
    last, so that no moment shows a model beside the weights of another.
    """
    beside = destination.with_name(destination.name + ".data")
    try:
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".export-") as folder:
            fresh = Path(folder) / destination.name
            onnx_ir.save(model, fresh, external_data=beside.name if external else None)
            onnx.checker.check_model(fresh, full_check=not external)
            fresh_beside = fresh.with_name(beside.name)
            has_data = fresh_beside.exists()
            _sync(fresh)
            if has_data:
                _sync(fresh_beside)
                destination.unlink(missing_ok=True)
                fresh_beside.replace(beside)
            leftover = not has_data and _reads(destination, beside)
            fresh.replace(destination)
            if leftover:
                beside.unlink(missing_ok=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the graph to be written is not valid ONNX: {first_line(error)}"
        ) from error
    except OSError as error:
        raise ExportError(f"cannot write {destination}: {error.strerror or error}") from error
    return beside if has_data else None


def _reads(path: Path, data: Path) -> bool:
    """Whether `path` is a model whose weights are in `data`, in the same folder."""
    if not (path.is_file() and data.is_file()):
        return False
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # whatever else it may be; protobuf's errors have no common base
        return False
    return any(
        entry.key == "location" and entry.value == data.name
        for weight in graph.initializer
        for entry in weight.external_data
    )


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
