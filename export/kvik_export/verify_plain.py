"""Verification of files of every task: the graph as it stands, on inputs of many sizes.

Each engine is one function from named inputs to the outputs. onnxruntime is what the others are
compared with.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvik_export.compare import TOLERANCE, scaled_error
from kvik_export.engines import onnxruntime_session
from kvik_export.errors import ExportError, first_line
from kvik_export.forms import EMBED, Feeds, Input, as_tensors, form_of, make_feeds, plain_forward
from kvik_export.verify import LENGTH, TORCH, Check, Verification

if TYPE_CHECKING:
    import onnxruntime

KVIK = "kvik, the graph as it stands"
KVIK_TEXTS = "kvik, each text by itself"
KVIK_TARGETS = "kvik, target by target"
Arrays = list[npt.NDArray[Any]]
PlainEngine = Callable[[Feeds], Arrays]
_BATCHES = (1, 2, 3)
_PADDING = 5  # more columns of it


def is_generator(path: str | os.PathLike[str]) -> bool:
    """Whether kvik can be asked to generate with the file: the checks of verify_model apply.

    Files without metadata are judged by their inputs: token ids alone.
    """
    import kvik

    try:
        session = onnxruntime_session(str(path))
    except Exception:  # verify_model says what is wrong with it
        return True
    task = session.get_modelmeta().custom_metadata_map.get("kvik.task")
    if task not in (None, "generate", "text-generation"):
        return False
    if task is None:
        return len(session.get_inputs()) == 1
    try:
        kvik.load(path)
    except kvik.UnsupportedError:  # operators that kvik lacks
        return False
    return True


@dataclass(frozen=True)
class _File:
    """What the file says about its inputs."""

    path: Path
    session: onnxruntime.InferenceSession
    inputs: tuple[Input, ...]
    vocab_size: int
    longest: int

    def run(self, feeds: Feeds) -> Arrays:
        found: Arrays = self.session.run(None, dict(feeds))
        return found


def verify_plain(
    path: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    length: int = LENGTH,
    threads: int | None = None,
    seed: int = 0,
    engines: Sequence[Callable[[Path, int | None], tuple[str, PlainEngine]]] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Compare torch, where a checkpoint is given, and other engines with onnxruntime.

    All outputs are compared, over several sizes of every dynamic axis, with rows of which one is
    half padding. Where the file has a mask, more padding must change nothing at real tokens.

    Args:
        path: a file of any task (kvik_export/forms.py).
        checkpoint: the training run that it was exported from.
        length: tokens at most.
        engines: makers of engines beside torch; None: kvik alone. One that cannot run the file is
            named as such, and is not a difference.

    Raises:
        ExportError: the file or the checkpoint cannot be read, or they do not belong together.
    """
    if length < 1:
        raise ExportError("length must be at least 1")
    on_step("onnxruntime")
    file = _open(Path(path), length, threads)
    made: list[tuple[str, PlainEngine]] = []
    result = Verification(file.path, incremental=None)
    if checkpoint is not None:
        made.append((TORCH, _torch_engine(file, Path(checkpoint))))
    for maker in (kvik_engine,) if engines is None else engines:
        try:
            made.append(maker(file.path, threads))
        except Exception as error:  # noqa: PERF203 (an engine says why)
            note = first_line(error)
            name = KVIK if maker is kvik_engine else maker.__name__
            result.checks.append(Check(name, "random", "nothing", None, True, note, skipped=True))
    cases = [
        make_feeds(file.inputs, sizes, file.vocab_size, seed + number)
        for number, sizes in enumerate(_sizes(file))
    ]
    references = [file.run(feeds) for feeds in cases]
    for name, engine in made:
        on_step(name)
        result.checks.append(_compare(name, engine, cases, references))
    if any(item.name.endswith("mask") for item in file.inputs):
        on_step("padding")
        result.checks.append(_padding(file, cases, references))
    if engines is None:
        names = {item.name for item in file.inputs}
        for name, wanted, check in (
            (KVIK_TEXTS, "input_ids", _texts),
            (KVIK_TARGETS, "target_ids", _targets),
        ):
            if wanted in names:
                on_step(name)
                result.checks.append(check(file, cases, references, threads))
    return result


def kvik_engine(path: Path, threads: int | None) -> tuple[str, PlainEngine]:
    """The InferenceSession of kvik; raises what that raises for a file that it cannot run."""
    import kvik

    session = kvik.InferenceSession(path, threads=threads)
    return KVIK, lambda feeds: [np.asarray(value) for value in session.run(None, dict(feeds))]


def _torch_engine(file: _File, checkpoint: Path) -> PlainEngine:
    import torch

    from kvik_train import load_checkpoint

    model, config, _, _ = load_checkpoint(checkpoint)
    task = file.session.get_modelmeta().custom_metadata_map.get("kvik.task")
    form = form_of(config, EMBED if task == EMBED else None)
    names = [item.name for item in form.inputs]
    if names != [item.name for item in file.inputs]:
        raise ExportError(
            f"{checkpoint} learnt {config.task} and takes {', '.join(names)}; {file.path} takes "
            f"{', '.join(item.name for item in file.inputs)}: they do not belong together"
        )
    module = plain_forward(model, form)

    def run(feeds: Feeds) -> Arrays:
        with torch.inference_mode():
            found = module(*as_tensors(feeds))
        outputs = found if isinstance(found, tuple) else (found,)
        return [output.numpy() for output in outputs]

    return run


def _open(path: Path, length: int, threads: int | None) -> _File:
    try:
        session = onnxruntime_session(str(path), threads=threads)
    except Exception as error:  # its exceptions have no public base
        raise ExportError(f"onnxruntime cannot load {path}: {first_line(error)}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    for item in session.get_inputs():
        if item.type not in ("tensor(int64)", "tensor(float)"):
            raise ExportError(f"{path} takes {item.name} of {item.type}; int64 or float expected")
    inputs = tuple(Input(item.name, tuple(item.shape)) for item in session.get_inputs())
    vocab_size = 2
    if "kvik.tokenizer" in metadata:
        from tokenizers import Tokenizer

        vocab_size = Tokenizer.from_str(metadata["kvik.tokenizer"]).get_vocab_size()
    longest = int(metadata.get("kvik.context_length", length))
    return _File(path, session, inputs, vocab_size, min(length, longest))


def _sizes(file: _File) -> list[dict[str, int]]:
    """Sizes of the dynamic axes: 1, small and the longest, mixed so that none always agree."""
    axes = {axis for item in file.inputs for axis in item.axes if isinstance(axis, str)}
    lengths = sorted({1, min(2, file.longest), min(17, file.longest), file.longest})
    others = sorted(axes - {"batch"})
    mixed = list(itertools.product(lengths, repeat=len(others)))
    return [
        {"batch": _BATCHES[number % 3], **dict(zip(others, chosen, strict=True))}
        for number, chosen in enumerate(mixed or [(), ()])
    ]


def _compare(name: str, engine: PlainEngine, cases: list[Feeds], references: list[Arrays]) -> Check:
    worst, note, count = 0.0, "", 0
    for feeds, expected in zip(cases, references, strict=True):
        try:
            found = engine(feeds)
        except Exception as error:  # whatever an engine raises
            return Check(name, "random", "", None, False, first_line(error))
        for output, reference in zip(found, expected, strict=True):
            difference = _error(output, reference)
            count += reference.size
            if difference > worst:
                worst, note = difference, str({key: value.shape for key, value in feeds.items()})
    ok = worst <= TOLERANCE
    return Check(name, "random", f"{count:,} values", worst, ok, "" if ok else note)


def _padding(file: _File, cases: list[Feeds], references: list[Arrays]) -> Check:
    """More padding on the right of what has a mask changes nothing at real tokens."""
    axis = next(item.axes[1] for item in file.inputs if item.name.endswith("mask"))
    masked = [item for item in file.inputs if len(item.axes) == 2 and item.axes[1] == axis]
    outputs = [tuple(item.shape) for item in file.session.get_outputs()]
    worst, count = 0.0, 0
    for feeds, expected in zip(cases, references, strict=True):
        room = _PADDING if file.longest > _PADDING else 0
        mask = next(feeds[item.name] for item in masked if item.name.endswith("mask"))
        if mask.shape[1] + room > max(file.longest, mask.shape[1]) or not room:
            continue
        wider = dict(feeds)
        for item in masked:
            fill = 0 if item.name.endswith("mask") else 1
            old = feeds[item.name]
            wider[item.name] = np.pad(old, ((0, 0), (0, room)), constant_values=fill)
        for output, reference, shape in zip(file.run(wider), expected, outputs, strict=True):
            for place, name in enumerate(shape):
                if name == axis:
                    kept = np.arange(reference.shape[place])
                    output = np.take(output, kept, axis=place)
            if len(shape) > 1 and shape[1] == axis:  # padding's own outputs mean nothing
                real = mask == 1
                output, reference = output[real], reference[real]
            count += reference.size
            worst = max(worst, _error(output, reference))
    return Check("more padding, onnxruntime", "random", f"{count:,} values", worst,
                 worst <= TOLERANCE)  # fmt: skip


def _texts(file: _File, cases: list[Feeds], references: list[Arrays], threads: int | None) -> Check:
    """Kvik gets every text without its padding, and must give what the padded batch gave."""
    import kvik

    try:
        model = kvik.load(file.path, threads=threads)
    except kvik.KvikError as error:
        return Check(KVIK_TEXTS, "random", "nothing", None, True, first_line(error), skipped=True)
    names = [item.name for item in file.session.get_outputs()]
    worst, count = 0.0, 0
    for feeds, expected in zip(cases, references, strict=True):
        everything = np.ones_like(feeds["input_ids"])
        lengths = feeds.get("attention_mask", everything).sum(axis=1)
        ids = [row[:n] for row, n in zip(feeds["input_ids"], lengths, strict=True)]
        types = None
        if "token_type_ids" in feeds and model.info.reads_types:
            types = [row[:n] for row, n in zip(feeds["token_type_ids"], lengths, strict=True)]
        try:
            found = model.encode(ids, types)
        except kvik.UnsupportedError as error:  # runs as the graph stands alone
            return Check(
                KVIK_TEXTS, "random", "nothing", None, True, first_line(error), skipped=True
            )
        except kvik.KvikError as error:
            return Check(KVIK_TEXTS, "random", "", None, False, first_line(error))
        for name, texts in found.items():
            padded = expected[names.index(name)]
            for text, reference, length in zip(texts, padded, lengths, strict=True):
                wanted = reference if text.ndim == 1 else reference[:length].reshape(text.shape)
                count += wanted.size
                worst = max(worst, _error(text, wanted))
    return Check(KVIK_TEXTS, "random", f"{count:,} values", worst, worst <= TOLERANCE)


def _targets(
    file: _File, cases: list[Feeds], references: list[Arrays], threads: int | None
) -> Check:
    """Each source encoded by itself, its target in two pieces, against the padded batch."""
    import kvik

    try:
        model = kvik.load(file.path, threads=threads)
    except kvik.KvikError as error:
        return Check(KVIK_TARGETS, "random", "nothing", None, True, first_line(error), skipped=True)
    place = next(i for i, item in enumerate(file.session.get_outputs()) if item.name == "logits")
    worst, count = 0.0, 0
    for feeds, expected in zip(cases, references, strict=True):
        lengths = feeds["source_mask"].sum(axis=1)
        rows = zip(feeds["source_ids"], lengths, feeds["target_ids"], expected[place], strict=True)
        for source, length, target, reference in rows:
            try:
                found = model.logits(target, source=source[:length], chunk=len(target) // 2 + 1)
            except kvik.KvikError as error:
                return Check(KVIK_TARGETS, "random", "", None, False, first_line(error))
            count += reference.size
            worst = max(worst, _error(found, reference))
    return Check(KVIK_TARGETS, "random", f"{count:,} values", worst, worst <= TOLERANCE)


def _error(found: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    if found.shape != reference.shape:
        return float("inf")
    return float(scaled_error(found, reference).max(initial=0.0))
