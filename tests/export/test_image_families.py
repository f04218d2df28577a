"""ViT and CNN: images in all precisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.export.families import (
    LABELS,
    MODELS,
    make_run,
)

import kvik
from kvik_export.engines import onnxruntime_session
from kvik_export.exporter import export_checkpoint
from kvik_train.models.vit import ViTConfig

VIT, CNN = ("vit", "classify-image", None), ("cnn", "classify-image", None)


@pytest.mark.parametrize("case", [VIT, CNN], ids=str)
def test_images_as_onnxruntime_classifies_them(files, case):
    channels = MODELS[case[0]].channels
    pixels = np.random.default_rng(8).integers(0, 256, (40, 8, 8, channels), dtype=np.uint8)
    images = ((pixels / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    (logits,) = onnxruntime_session(str(files[case])).run(None, {"image": images})
    model = kvik.load(files[case], threads=2)
    assert model.task == "classify_image"
    exact = model._core.encode_images(images)
    assert np.abs(exact - logits).max() < 1e-5 * np.abs(logits).max()
    found = model.classify(pixels)
    assert [item.label for item in found] == [LABELS[i] for i in logits.argmax(axis=1)]
    logits = logits.astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = np.array([list(item.scores.values()) for item in found])
    assert np.abs(scores - chances).max() < 1e-5


@pytest.mark.parametrize("case", [VIT, CNN], ids=str)
@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_an_image_has_the_same_bits_alone(files, case, weights):
    channels = MODELS[case[0]].channels
    images = np.random.default_rng(9).standard_normal((37, channels, 8, 8)).astype(np.float32)
    together = kvik.load(files[case], threads=3, weights=weights)._core.encode_images(images)
    single = kvik.load(files[case], threads=1, weights=weights)
    apart = np.concatenate([single._core.encode_images(image[None]) for image in images])
    assert together.tobytes() == apart.tobytes()


@pytest.fixture(scope="module")
def wide_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With matrices large enough to be worth quantising."""
    folder = tmp_path_factory.mktemp("wide")
    config = ViTConfig(8, 3, patch_size=4, n_layer=2, n_head=2, n_embd=64, n_feed_forward=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "vit", config)
        export_checkpoint(make_run(folder / "run", "vit", "classify-image"), folder / "vit.onnx")
    return folder / "vit.onnx"


def test_a_session_has_the_precisions_of_a_model(wide_vit):
    images = np.random.default_rng(9).standard_normal((5, 3, 8, 8)).astype(np.float32)
    exact = kvik.load(wide_vit)._core.encode_images(images)
    errors = {}
    for weights in ("f32", "bf16", "int8", "int4"):
        model = kvik.load(wide_vit, weights=weights)
        session = kvik.InferenceSession(wide_vit, weights=weights)
        (logits,) = session.run(None, {"image": images})
        assert model._core.encode_images(images).tobytes() == logits.tobytes()
        errors[weights] = float(np.abs(logits - exact).max() / np.abs(exact).max())
        assert model.info.weights == weights
    assert errors["f32"] == 0 < errors["bf16"] < errors["int8"] < errors["int4"] < 0.5
    sizes = [kvik.load(wide_vit, weights=w).info.packed_bytes for w in ("f32", "int8", "int4")]
    assert sizes[0] > 2.5 * sizes[1] > 2.5 * 1.3 * sizes[2]
    with pytest.raises(kvik.InvalidArgumentError, match="weights must be"):
        kvik.InferenceSession(wide_vit, weights="int3")
