"""Low-precision weights on a model that was trained for a moment, so that its predictions mean
something: within the bounds of benchmarks/quality.py, with some slack for so small a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kvik
from kvik.arguments import WeightType
from kvik_export.exporter import export_checkpoint
from kvik_export.quality import log_softmax, measure_quality
from kvik_train import cli

WINDOW = 128
# (mean KL, share of the same top token)
BOUNDS = {"bf16": (1e-4, 0.99), "int8": (0.004, 0.965), "int4": (0.05, 0.88)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    cli.train(out=folder / "run", steps=120, max_bytes=400_000, eval_interval=1000, eval_windows=5)
    export_checkpoint(folder / "run", folder / "gpt.onnx")
    return folder / "gpt.onnx"


@pytest.fixture(scope="module")
def windows(trained: Path) -> list[list[int]]:
    tokenizer = kvik.load(trained).tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(Path(__file__).read_text())
    return [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW, WINDOW)]


def test_bounds(trained: Path, windows: list[list[int]]) -> None:
    pairs = [(weights, "f32") for weights in BOUNDS]
    found = {item.weights: item for item in measure_quality(trained, windows, pairs)}
    assert found["int8"].tokens >= 8 * WINDOW
    for weights, bounds in BOUNDS.items():
        assert found[weights].within(*bounds), found[weights]
    # It does measure: fewer bits cost more, and nothing comes for free.
    assert 0 < found["bf16"].mean_kl < found["int8"].mean_kl < found["int4"].mean_kl
    assert found["int4"].packed_bytes < found["int8"].packed_bytes < found["bf16"].packed_bytes


def test_bounds_of_the_cache(trained: Path, windows: list[list[int]]) -> None:
    bf16, int8 = measure_quality(trained, windows, [("f32", "bf16"), ("f32", "int8")])
    assert (bf16.cache, int8.cache) == ("bf16", "int8")
    for item in (bf16, int8):
        assert item.within(*BOUNDS["int8"]), item
    assert 0 < bf16.mean_kl < int8.mean_kl


def test_another_model_is_out_of_bounds(trained: Path, windows: list[list[int]]) -> None:
    model = kvik.load(trained)
    expected = log_softmax(model.logits(windows[0]))
    other = log_softmax(model.logits(windows[0][::-1]))
    kl = (np.exp(expected) * (expected - other)).sum(axis=-1).mean()
    assert kl > 10 * BOUNDS["int4"][0]


@pytest.mark.parametrize("weights", BOUNDS)
def test_generation_does_not_depend_on_threads(trained: Path, weights: WeightType) -> None:
    texts = {
        kvik.load(trained, weights=weights, threads=threads).generate("def f", max_new_tokens=40)
        for threads in (1, 2, 3)
    }
    assert len(texts) == 1


def test_unknown_precision(trained: Path) -> None:
    with pytest.raises(kvik.InvalidArgumentError, match=r"'int8' or 'int4'; found str 'int3'"):
        kvik.load(trained, weights="int3")  # type: ignore[arg-type]
