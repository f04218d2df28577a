"""Where a model's checkpoint, its exports and the peers' forms of it lie.

Everything is made from one seeded model, so that every engine has the same weights. What is there
and complete is not made again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelFolder:
    """The folder of one model."""

    root: Path
    model: str

    def make(self, name: str, build: Callable[[Path], object]) -> Path:
        """The folder `name`, built once: `build` gets a new folder that is renamed when done."""
        done = self.root / self.model / name
        if not done.is_dir():
            begun = done.with_name(f".{name}.begun")
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir(parents=True)
            build(begun)
            begun.rename(done)
        return done


@dataclass(frozen=True)
class Workspace(ModelFolder):
    """Of a language model: a name of benchmarks.models.SHAPES."""

    @property
    def checkpoint(self) -> Path:
        """A transformers folder: config.json, model.safetensors, tokenizer.json."""
        return self.make("checkpoint", lambda folder: _save_checkpoint(self.model, folder))

    @property
    def plain(self) -> Path:
        """The plain forward pass as ONNX: ids [B, S] -> logits [B, S, V]."""
        return self.make("plain", lambda folder: _export_plain(self.model, folder)) / "model.onnx"

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        config: dict[str, Any] = json.loads((self.checkpoint / "config.json").read_text())
        return config


def bytes_of(path: Path) -> int:
    """Size of a file, or of a folder with all that is in it."""
    if path.is_file():
        beside = path.with_name(path.name + ".data")
        return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def _save_checkpoint(model: str, folder: Path) -> None:
    from benchmarks.models import build

    module: Any = build(model)
    module.save_pretrained(folder)
    _save_tokenizer(folder, module.config.vocab_size)


def _save_tokenizer(folder: Path, vocab_size: int) -> None:
    """One token a word, "t0", "t1" ...: converters ask for a tokenizer, nothing is tokenized."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    library: Any = transformers  # its classes have no types
    vocab = {f"t{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="t0", bos_token="t1", eos_token="t2"
    ).save_pretrained(folder)


def _export_plain(model: str, folder: Path) -> None:
    from benchmarks.models import export

    export(model, folder / "model.onnx")
