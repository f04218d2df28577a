"""A row's logits are the same bits whatever the threads, the batch, the chunks and the cache.

For each instruction set of this CPU, in a process of its own: it is chosen once per process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvik import _core
from parity.selection import POSITIVE

WORKER = Path(__file__).with_name("bitwise_worker.py")
# One of each kind of attention, norm and position; every model would say the same again.
NAMES = (
    "gpt-op18", "gpt-op23", "gpt-post-op23", "hf-gpt2-sdpa-op18", "hf-llama-sdpa-op18",
    "hf-llama-sdpa-op23", "hf-llama-one-kv-head-sdpa-op23", "hf-mistral-window-sdpa-op23",
    "spelling-gpt2-original", "spelling-trilu-1e9",
)  # fmt: skip


def run_worker(isa: str, paths: list[Path], weights: str = "f32", cache: str = "f32") -> list[dict]:
    done = subprocess.run(
        [sys.executable, WORKER, *paths],
        env={**os.environ, "KVIK_ISA": isa, "KVIK_TEST_WEIGHTS": weights, "KVIK_TEST_CACHE": cache},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("isa", _core.available_isas())
def test_same_bits(isa, model_file):
    cases = {case.name: case for case in POSITIVE}
    results = run_worker(isa, [model_file(cases[name]) for name in NAMES])
    assert len(results) == len(NAMES)
    for result in results:
        assert result["isa"] == isa, "KVIK_ISA did not choose the kernels"
        assert result["ways"] == 39
        assert not result["different"], f"{result['model']}: {result['different']}"


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory) -> Path:
    """Wide enough that its matrices are kept in low precision, some sizes no multiple of a panel or
    of a group."""
    import torch

    from kvik_export.exporter import export_module
    from kvik_train.models.gpt import GPT, GPTConfig

    torch.manual_seed(3)
    config = GPTConfig(vocab_size=131, context_length=160, n_layer=2, n_head=4, n_embd=72)
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    export_module(GPT(config), path, vocab_size=131, context_length=160)
    return path


@pytest.mark.parametrize("isa", _core.available_isas())
def test_same_bits_in_low_precision(isa, wide_model):
    digests = set()
    pairs = [("bf16", "bf16"), ("int8", "int8"), ("int4", "f32"), ("f32", "int8")]
    for weights, cache in pairs:
        (result,) = run_worker(isa, [wide_model], weights, cache)
        assert (result["isa"], result["weights"], result["cache"]) == (isa, weights, cache)
        assert result["ways"] == 39
        assert not result["different"], f"{weights}, cache {cache}: {result['different']}"
        digests.add(result["sha256"])
    assert len(digests) == len(pairs), "two precisions are one"


@pytest.fixture(scope="module")
def recurrent_models(tmp_path_factory) -> list[Path]:
    """One of each cell, wide enough that their matrices are kept in low precision."""
    import torch

    from kvik_train.models.rnn import RNN, RNNConfig

    paths = []
    for cell in ("lstm", "gru", "rnn"):
        torch.manual_seed(3)
        model = RNN(RNNConfig(cell, 131, 160, n_layer=2, n_embd=40, n_hidden=72)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        paths.append(tmp_path_factory.mktemp("recurrent") / f"{cell}.onnx")
        torch.onnx.export(
            model, (torch.zeros((2, 5), dtype=torch.int64),), str(paths[-1]), dynamo=False,
            input_names=["input_ids"], output_names=["logits"],
            dynamic_axes={"input_ids": {0: "batch", 1: "sequence"}},
        )  # fmt: skip
    return paths


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("isa", _core.available_isas())
def test_same_bits_of_recurrent_models(isa, recurrent_models):
    digests = set()
    for weights, cache in (("f32", "f32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "f32")):
        for result in run_worker(isa, recurrent_models, weights, cache):
            assert (result["isa"], result["weights"]) == (isa, weights)
            assert result["ways"] == 39
            assert not result["different"], f"{result['model']}, {weights}: {result['different']}"
            digests.add(result["sha256"])
    assert len(digests) == 4 * len(recurrent_models), "two precisions are one"
