"""Images of every kind become the same numbers, and files that say how are believed or refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import kvik
from kvik.images import fit

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

FORMAT = {"size": [5, 5], "channels": 1, "mean": [0.5], "std": [0.25]}


def make_file(folder, channels=1, size=(5, 5), batch="batch", metadata=None, labels=None):
    """Logits = all pixels times a seeded matrix, 3 labels."""
    features = channels * size[0] * size[1] if all(isinstance(s, int) for s in size) else 25
    random = np.random.default_rng(5)
    w = random.standard_normal((features, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    weights = [
        numpy_helper.from_array(w, "w"),
        numpy_helper.from_array(np.array([-1, features]), "shape"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, channels, *size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 3])
    graph = helper.make_graph(nodes, "images", [image], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    said = {} if metadata is None else {"kvik.image": json.dumps(metadata)}
    if labels is not None:
        said["kvik.labels"] = json.dumps(labels)
    helper.set_model_props(model, said)
    path = folder / "image.onnx"
    onnx.save(model, path)
    return path, w


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def scores(found):
    return np.array([list(item.scores.values()) for item in found])


def smooth(shape, channels):
    """Waves, as a photograph has, within the range: what leaves it is cut off once more there."""
    down, right = np.meshgrid(*(np.linspace(0, 3, size) for size in shape), indexing="ij")
    waves = [np.sin((2 + c) * down + right * (1 + c)) * np.cos(down - 2 * right + c)
             for c in range(channels)]  # fmt: skip
    return np.rint(127.5 + 90 * np.stack(waves, axis=2)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (5, 5), (33, 20), (20, 64), (100, 30)])
def test_scaling_is_pillows(shape, channels):
    pixels = smooth(shape, channels)
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    for size in ((8, 8), (6, 11), (40, 40)):
        expected = np.asarray(ImageOps.fit(picture, size[::-1])).reshape(*size, channels)
        found = fit(pixels.astype(np.float64), size, whole=True)
        # Pillow rounds between the directions, which moves a pixel by one; here and there by two.
        assert np.abs(found - expected).max() <= 2
        assert np.abs(found - expected).mean() < 0.4
        if size != shape:
            assert np.abs(found[::-1] - expected).mean() > 1  # what it would be upside down


def test_an_array_a_picture_and_a_file_are_the_same(tmp_path):
    path, w = make_file(tmp_path, metadata=FORMAT, labels=["a", "b", "c"])
    model = kvik.load(path)
    assert model.task == "classify_image"
    pixels = np.random.default_rng(1).integers(0, 256, (5, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", pixels)
    same = [
        pixels, pixels[..., None], pixels.astype(np.int64), pixels / 255.0, Image.fromarray(pixels),
        tmp_path / "x.png", str(tmp_path / "x.png"), tmp_path / "x.npy",
    ]  # fmt: skip
    expected = softmax(((pixels / 255 - 0.5) / 0.25).reshape(1, -1) @ w)
    found = model.classify(same)
    assert np.abs(scores(found) - expected).max() < 1e-6
    assert [item.label for item in found] == ["abc"[expected.argmax()]] * len(same)
    single = model.classify(pixels)
    assert single.top(2)[0] == (single.label, single.score)
    assert len(single.top(2)) == 2
    assert scores(model.classify(np.stack([pixels] * 3))).shape == (3, 3)
    assert scores(model.classify(np.stack([pixels] * 2)[..., None])).shape == (2, 3)
    assert model.classify([]) == []


def test_colours(tmp_path):
    random = np.random.default_rng(2)
    pixels = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    grey, _ = make_file(tmp_path, metadata=FORMAT)
    model = kvik.load(grey)
    as_pillow = np.asarray(picture.convert("L"))
    everything = model.classify([pixels, picture, as_pillow, picture.convert("RGBA")])
    assert (scores(everything) == scores(everything)[0]).all()

    folder = tmp_path / "colour"
    folder.mkdir()
    wide = {"size": [5, 5], "channels": 3, "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}
    colour, w = make_file(folder, channels=3, metadata=wide)
    model = kvik.load(colour)
    values = (pixels / 255 - wide["mean"]) / wide["std"]
    expected = softmax(values.transpose(2, 0, 1).reshape(1, -1) @ w)
    assert np.abs(scores([model.classify(pixels)]) - expected).max() < 1e-6
    alpha = np.concatenate((pixels, random.integers(0, 256, (5, 5, 1), dtype=np.uint8)), axis=2)
    assert model.classify(alpha).scores == model.classify(pixels).scores
    flat = as_pillow
    same = scores(model.classify([flat, np.repeat(flat[..., None], 3, axis=2)]))
    assert (same[0] == same[1]).all()
    with pytest.raises(kvik.InvalidArgumentError, match=r"channels first.*transpose\(1, 2, 0\)"):
        model.classify(pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((5, 5), 16.0), "image 0 has pixels from 16 to 16; float64 pixels are from 0 to 1"),
        (np.full((5, 5), np.nan), "pixels from nan to nan"),
        (np.full((5, 5), 256), "pixels from 256 to 256; int64 pixels are from 0 to 255"),
        (np.full((5, 5), "x"), "holds <U1"),
        (np.zeros(4), r"shape \[4\]"),
        (np.zeros((0, 5)), r"shape \[0, 5, 1\]"),
        (7, "must be a numpy array, a Pillow image or the path of a file; found int"),
        ("no/such.png", "no such file: no/such.png"),
    ],
)
def test_what_is_no_image(tmp_path, image, message):
    model = kvik.load(make_file(tmp_path, metadata=FORMAT)[0])
    with pytest.raises(kvik.KvikError, match=message):
        model.classify(image)
    model.classify(np.zeros((5, 5)))  # the model is as it was


def test_a_file_that_is_no_picture(tmp_path):
    model = kvik.load(make_file(tmp_path, metadata=FORMAT)[0])
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(
        kvik.InvalidArgumentError, match=r"x\.png is not an image that Pillow reads"
    ):
        model.classify(tmp_path / "x.png")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(kvik.InvalidArgumentError, match=r"x\.npy is no array"):
        model.classify(tmp_path / "x.npy")


def test_without_pillow(tmp_path):
    path, _ = make_file(tmp_path, metadata=FORMAT)
    (tmp_path / "x.png").write_bytes(b"")
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "import numpy, kvik\n"
        f"model = kvik.load({str(path)!r})\n"
        "print(len(model.classify(numpy.zeros((2, 9, 5, 3), numpy.uint8))))\n"
        f"model.classify({str(tmp_path / 'x.png')!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "2\n"
    assert "needs Pillow, which is not installed: pip install pillow" in done.stderr


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch(tmp_path, batch):
    pixels = np.random.default_rng(3).integers(0, 256, (5, 5, 5), dtype=np.uint8)
    fixed = kvik.load(make_file(tmp_path, metadata=FORMAT, batch=batch)[0]).classify(pixels)
    free = kvik.load(make_file(tmp_path, metadata=FORMAT)[0]).classify(pixels)
    assert len(fixed) == 5
    assert np.abs(scores(fixed) - scores(free)).max() < 1e-6


def test_a_file_that_says_nothing(tmp_path):
    path, w = make_file(tmp_path)
    model = kvik.load(path)  # told by its input
    assert model.task == "classify_image"
    ready = np.random.default_rng(4).standard_normal((5, 5)).astype(np.float32)
    found = model.classify(ready)
    assert np.abs(scores([found]) - softmax(ready.reshape(1, -1) @ w)).max() < 1e-6
    assert list(found.scores) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    pixels = np.zeros((5, 5), np.uint8)
    with pytest.raises(kvik.InvalidArgumentError, match="does not say how the model wants them"):
        model.classify(pixels)
    told = kvik.load(path, task="classify_image", image=kvik.ImageFormat(mean=(0.5,), std=(0.25,)))
    said = kvik.load(make_file(tmp_path, metadata=FORMAT)[0])
    assert told.classify(pixels).scores == said.classify(pixels).scores

    folder = tmp_path / "free"
    folder.mkdir()
    free, _ = make_file(folder, size=("height", "width"))
    with pytest.raises(kvik.UnsupportedError, match="say the height of an image"):
        kvik.load(free)
    assert kvik.load(free, image=kvik.ImageFormat(size=(5, 5))).classify(pixels).label


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [4]}, r"must be a JSON object of size \[height, width\].*\(size\)"),
        ({"size": [6, 5]}, "says height 6; the graph takes 5"),
        ({"channels": "1"}, r"\(channels\)"),
        ({"channels": 3}, "says channels 3; the graph takes 1"),
        ({"mean": [0.5, 0.5]}, "has 2 numbers for mean, and 1 channels"),
        ({"std": [0]}, "impossible std"),
        ({"std": None}, r"\(std\)"),
        ({"mean": [1e999]}, "impossible mean"),
    ],
)
def test_metadata_that_can_not_be(tmp_path, change, message):
    path, _ = make_file(tmp_path, metadata={**FORMAT, **change})
    with pytest.raises(kvik.InvalidModelError, match=message) as caught:
        kvik.load(path)
    assert str(path) in str(caught.value)


def test_texts_and_images_are_told_apart(tmp_path, text_path):
    path, _ = make_file(tmp_path, metadata=FORMAT)
    model = kvik.load(path)
    for call in (
        lambda: model.generate("x"), lambda: model.embed("x"), lambda: model.encode([[1]]),
        lambda: model.translate("x"), lambda: model.logits([1]),
    ):  # fmt: skip
        with pytest.raises(kvik.InvalidArgumentError, match=r"whose task is classify_image"):
            call()
    with pytest.raises(kvik.InvalidArgumentError, match="labels of its own"):
        model.classify(np.zeros((5, 5)), labels=["a", "b"])
    with pytest.raises(kvik.InvalidArgumentError, match="truncate= is for texts"):
        model.classify(np.zeros((5, 5)), truncate=True)
    with pytest.raises(kvik.InvalidArgumentError, match="embed does not fit a model of images"):
        kvik.load(path, task="embed")
    with pytest.raises(kvik.InvalidArgumentError, match="does not fit a model of texts"):
        kvik.load(text_path, task="classify_image")
    with pytest.raises(kvik.InvalidArgumentError, match="image= is for models that read images"):
        kvik.load(text_path, image=kvik.ImageFormat())
    with pytest.raises(kvik.InvalidArgumentError, match=r"must be a kvik.ImageFormat"):
        kvik.load(path, image=(5, 5))
    with pytest.raises(kvik.InvalidArgumentError, match="got an image, and this model reads texts"):
        kvik.load(text_path).classify([np.zeros((5, 5))])
    model.start_profile()
    model.classify(np.zeros((5, 5)))
    assert model.stop_profile().calls == 1


def command(capsys, *arguments):
    """(exit status, stdout, stderr) of a kvik command."""
    from kvik.cli import main

    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_command(tmp_path, capsys, text_path):
    path, _ = make_file(tmp_path, metadata=FORMAT, labels=["a", "b", "c"])
    pixels = np.random.default_rng(1).integers(0, 256, (9, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    best = kvik.load(path).classify(pixels)
    status, out, _ = command(capsys, "run", path, tmp_path / "x.png", "--top", 2)
    assert status == 0
    assert [line.split()[1] for line in out.splitlines()] == [name for name, _ in best.top(2)]
    status, out, _ = command(capsys, "run", path, tmp_path / "x.png", "--json")
    assert json.loads(out) == {
        "image": str(tmp_path / "x.png"), "label": best.label, "scores": best.scores
    }  # fmt: skip
    two = command(capsys, "run", path, tmp_path / "x.png", tmp_path / "x.png")[1]
    assert two.splitlines() == [f"{best.label}\t{best.score:.2%}\t{tmp_path / 'x.png'}"] * 2

    status, out, _ = command(capsys, "run", text_path, "ab", "--labels", "cat, dog", "--json")
    assert status == 0
    assert json.loads(out)["scores"] == kvik.load(text_path).classify(
        "ab", labels=["cat", "dog"]
    ).scores  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "MODEL", "no.png"], "no such file: no.png"),
        (["run", "MODEL", "."], ". is a folder: name the images in it"),
        (["run", "MODEL", "x", "--labels", "a,b"], "--labels is for models that generate"),
        (["run", "MODEL", "x", "--question", "?"], "--question is for models that answer"),
        (["run", "TEXTS", "x"], "use kvik generate, or name labels to choose from with --labels"),
        (["run", "TEXTS", "x", "--labels", "a"], "two different texts at least"),
        (["run", "TEXTS", "x", "--labels", "a,b", "--template", "{txt} {label}"], "{text} and"),
        (
            ["generate", "MODEL", "x"],
            "continues no texts, its task is classify_image: use kvik run",
        ),
        (["bench", "MODEL"], "continues no texts, its task is classify_image"),
        (["bench", "MODEL", "--profile"], "continues no texts, its task is classify_image"),
    ],
)
def test_commands_that_do_not_fit(tmp_path, capsys, text_path, arguments, message):
    path, _ = make_file(tmp_path, metadata=FORMAT)
    given = [{"MODEL": path, "TEXTS": text_path}.get(item, item) for item in arguments]
    status, out, error = command(capsys, *given)
    assert (status, out) == (2, "")
    assert message in error
    assert error.startswith("kvik: error: ")
    assert len(error.splitlines()) == 1
