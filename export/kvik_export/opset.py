"""Declaring a newer opset where that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir

from kvik_export.errors import ExportError

# Operators with the same inputs and attributes in several versions, and another meaning.
_CHANGED = {"GroupNormalization", "Resize"}


def raise_opset(model: onnx_ir.Model, wanted: int, what_for: str) -> None:
    """Declare opset `wanted` where every operator of the graph means the same in it.

    Between most opsets, most operators gain types and nothing else; those are left as they are.
    onnx.version_converter would rewrite the others, and does not know all of them.

    Raises:
        ExportError: an operator changed in between.
    """
    have = model.opset_imports.get("", 1)
    if have >= wanted:
        return
    changed = {
        node.op_type
        for node in model.graph.all_nodes()
        if node.domain in ("", "ai.onnx") and not _means_the_same(node.op_type, have, wanted)
    }
    if changed:
        raise ExportError(
            f"the file has opset {have} and {what_for} needs {wanted}, by which "
            f"{', '.join(sorted(changed))} changed: export the model with --opset 23"
        )
    model.opset_imports[""] = wanted


def _means_the_same(op: str, have: int, wanted: int) -> bool:
    try:
        old = onnx.defs.get_schema(op, have, "")
        new = onnx.defs.get_schema(op, wanted, "")
    except onnx.defs.SchemaError:  # unknown in one of them
        return False
    if old.since_version == new.since_version:
        return True
    if op in _CHANGED:
        return False
    return (
        _starts_like(old.inputs, new.inputs)
        and _starts_like(old.outputs, new.outputs)
        and all(
            name in new.attributes
            and attribute.type == new.attributes[name].type
            and attribute.default_value == new.attributes[name].default_value
            for name, attribute in old.attributes.items()
        )
        and not any(
            attribute.required
            for name, attribute in new.attributes.items()
            if name not in old.attributes
        )
    )


def _starts_like(
    old: Sequence[onnx.defs.OpSchema.FormalParameter],
    new: Sequence[onnx.defs.OpSchema.FormalParameter],
) -> bool:
    """Whether the new parameters are the old ones, with others at the end that may be left out."""
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    names = [(item.name, item.option) for item in new]
    return names[: len(old)] == [(item.name, item.option) for item in old] and all(
        item.option == optional for item in new[len(old) :]
    )
