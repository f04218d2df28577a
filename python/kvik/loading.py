"""Opening a model: the file, its tokenizer and what its metadata say."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from kvik import _core
from kvik.arguments import (
    CacheType,
    WeightType,
    check_choice,
    check_count,
    check_names,
    check_path,
    check_threads,
)
from kvik.encoder import read_encoder_metadata
from kvik.errors import InvalidArgumentError
from kvik.images import ImageFormat, make_reader
from kvik.metadata import read_metadata
from kvik.model import Model
from kvik.tasks import TASK_KEY, Task, find_task
from kvik.tokenizer import find_tokenizer
from kvik.translation import read_start_id

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from kvik.tokenizer import TokenizerLike

__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    tokenizer: TokenizerLike | None = None,
    weights: WeightType = "f32",
    cache: CacheType = "f32",
    max_rows: int = 256,
    task: Task | None = None,
    outputs: Sequence[str] = (),
    image: ImageFormat | None = None,
) -> Model:
    """Load an ONNX file that maps token ids to logits, or to vectors, or images to logits.

    The file is mapped, not copied, and must not change while the model lives.

    Args:
        path: The .onnx file; external weights are looked for in its folder.
        threads: Threads to compute with; None: one for each CPU of this process.
        tokenizer: Path of a tokenizer.json, a folder that holds one, or a tokenizers.Tokenizer.
            None: the one in the model's metadata, else tokenizer.json beside the file, else none
            (token ids only).
        weights: Precision in which the matrices of linear and recurrent layers and convolutions are
            kept in memory, whatever it is in the file, unless the file holds integers (as `kvik
            quantize` writes them): those run as they are stored, with any of the four. "bf16"
            halves what is read for each token; "int8" quarters it and quantises the layers' inputs
            row by row; "int4" reads a seventh, with a scale for each 32 weights. Rows of embedding
            tables have 8 bits by both; attention is computed in fp32. On CPUs that multiply
            bfloat16 numbers (AVX512_BF16, AMX) "bf16" rounds the layers' inputs too.
        cache: Precision in which keys and values of the tokens so far are kept. "bf16" halves their
            memory, "int8" quarters it, with a scale for each token and head. States of recurrent
            layers stay float32. A model that is not incremental has no cache.
        max_rows: Tokens of the prompts that are computed at once, 1 to 65536. More need more memory
            for activations; the numbers are the same.
        task: What the model is for, of "generate", "fill_mask", "classify", "tag", "answer",
            "embed", "translate" and "classify_image"; None: what the file's metadata says, else
            what its inputs and outputs look like.
        outputs: Of a model that reads whole texts, the outputs to compute; (): start_logits and
            end_logits where there are both, else logits, else the first of floats that can be
            computed for each text by itself. Of a model of images, one output.
        image: How a model of images wants them; None: as the file's metadata say. Without either,
            images must be arrays that are normalised already.

    Raises:
        FileError: The file or the tokenizer can't be read.
        InvalidModelError: The bytes are not a valid model, or its kvik.* metadata are wrong.
        UnsupportedError: The model needs something that Kvik lacks; the message lists all of it.
        InvalidArgumentError: An argument is impossible.
    """
    file = check_path(path)
    core = _core.Model.load(
        file,
        threads=check_threads(threads),
        weights=check_choice(weights, "weights", get_args(WeightType)),
        cache=check_choice(cache, "cache", get_args(CacheType)),
        max_rows=check_count(max_rows, "max_rows", 1, 65536),
        outputs=check_names(outputs, "outputs"),
    )
    metadata = core.metadata
    if image is not None and not isinstance(image, ImageFormat):
        raise InvalidArgumentError(
            f"image must be a kvik.ImageFormat; found {type(image).__name__}"
        )
    return Model(
        core,
        find_tokenizer(file, metadata, tokenizer),
        read_metadata(metadata, core.info.token_limit or core.info.vocab_size, file),
        find_task(core, metadata, task, file),
        read_encoder_metadata(metadata, file),
        told=task is not None or TASK_KEY in metadata,
        start_id=read_start_id(metadata, file),
        images=make_reader(core, metadata, image, file),
        file=file,
    )
