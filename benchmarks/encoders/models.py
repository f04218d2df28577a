"""BERT-base, ViT-B/16 and the base Transformer with seeded random weights, exported plainly.

Speed does not depend on the values of the weights, so no download is needed. A model is made once,
as a checkpoint that every engine's form is made from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.encoders.inputs import FIRST_WORD, IMAGE, LABELS, START, VOCAB
from benchmarks.workspace import ModelFolder

# The opset of kvik_export: its Attention and Gelu are what onnxruntime is fastest with.
_OPSET = 23
_SEED = 0


@dataclass(frozen=True)
class EncoderFolder(ModelFolder):
    """Where a model's checkpoint and every peer's converted form of it lie."""

    @property
    def checkpoint(self) -> Path:
        """The folder of a training run of kvik_train, or weights.pt of a transformers model."""
        return self.make("checkpoint", _SAVE[self.model])

    @property
    def plain(self) -> Path:
        """The plain forward as ONNX; the Transformer's holds a tokenizer of one token a word."""
        export = _export_transformer if self.model == "transformer-base" else self._export
        return self.make("plain", lambda folder: export(self.checkpoint, folder)) / "model.onnx"

    def _export(self, checkpoint: Path, folder: Path) -> None:
        _export_library_model(self.model, checkpoint, folder / "model.onnx")


def load_module(model: str, checkpoint: Path) -> Any:
    """The PyTorch module, in eval mode; forward takes the inputs of the plain file in order."""
    if model == "transformer-base":
        from kvik_train import load_checkpoint

        return load_checkpoint(checkpoint)[0]
    import torch

    module = _library_module(model)
    module.load_state_dict(torch.load(checkpoint / "weights.pt", weights_only=True))
    return module.eval()


# ---- BERT and ViT, of transformers ---------------------------------------------------------------


def _library_module(model: str) -> Any:
    """BERT: ids, mask, types -> the last hidden state; ViT: images -> the logits of 1000 labels."""
    import transformers
    from torch import Tensor, nn

    library: Any = transformers  # its classes have no types

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = library.BertConfig(attn_implementation="sdpa")
            self.model = library.BertModel(config, add_pooling_layer=False)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, types: Tensor) -> Any:
            found = self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=types
            )
            return found.last_hidden_state

    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = library.ViTConfig(num_labels=LABELS, attn_implementation="sdpa")
            self.model = library.ViTForImageClassification(config)

        def forward(self, image: Tensor) -> Any:
            return self.model(pixel_values=image).logits

    return Bert() if model == "bert-base" else Vit()


def _save_library_model(model: str, folder: Path) -> None:
    import torch

    torch.manual_seed(_SEED)
    torch.save(_library_module(model).state_dict(), folder / "weights.pt")


def _export_library_model(model: str, checkpoint: Path, path: Path) -> None:
    import torch

    from kvik_export.quiet import quiet

    batch = torch.export.Dim("batch")
    if model == "bert-base":
        axes = {0: batch, 1: torch.export.Dim("sequence", max=512)}
        ids = torch.full((2, 9), FIRST_WORD)
        example: tuple[Any, ...] = (ids, torch.ones_like(ids), torch.zeros_like(ids))
        names, output = ["input_ids", "attention_mask", "token_type_ids"], "last_hidden_state"
    else:
        axes, example = {0: batch}, (torch.zeros(2, *IMAGE),)
        names, output = ["image"], "logits"
    with quiet(), torch.no_grad():
        torch.onnx.export(
            load_module(model, checkpoint),
            example,
            str(path),
            input_names=names,
            output_names=[output],
            dynamic_shapes=(axes,) * len(names),
            dynamo=True,
            opset_version=_OPSET,
            external_data=False,
        )


# ---- the Transformer, of kvik_train --------------------------------------------------------------


def _save_transformer(folder: Path) -> None:
    """As an untrained run, with a tokenizer in which no word ends a translation."""
    import torch

    from kvik_train.checkpoint import Checkpoint, Progress, save_checkpoint
    from kvik_train.config import DataConfig, RunConfig, TrainConfig
    from kvik_train.models import build_model
    from kvik_train.models.transformer import PRESETS

    config = PRESETS["transformer-base"]
    torch.manual_seed(_SEED)
    module = build_model(config, "translate", ())
    run = RunConfig(
        "transformer-base", "transformer", config, DataConfig(), TrainConfig(), "translate"
    )
    save_checkpoint(folder, Checkpoint(run, Progress(), "", module.state_dict(), {}))
    _save_tokenizer(folder / "tokenizer.json")


def word(token: int) -> str:
    """How the tokenizer spells an id."""
    return "<s>" if token == START else f"t{token}"


def vocabulary() -> list[str]:
    return [word(token) for token in range(VOCAB["transformer-base"])]


def _save_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {text: token for token, text in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


def _export_transformer(checkpoint: Path, folder: Path) -> None:
    from kvik_export.exporter import export_checkpoint

    export_checkpoint(checkpoint, folder / "model.onnx", opset=_OPSET)


_SAVE: dict[str, Callable[[Path], None]] = {
    "bert-base": lambda folder: _save_library_model("bert-base", folder),
    "vit-b16": lambda folder: _save_library_model("vit-b16", folder),
    "transformer-base": _save_transformer,
}
