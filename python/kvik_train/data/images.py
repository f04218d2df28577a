"""Labelled images as arrays: the digits of scikit-learn, and folders with a subfolder per label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvik_train.errors import TrainError

DIGITS = "digits"
# Pixels from 0 to 1 become numbers from -1 to 1, as in ViT.
IMAGE_MEAN = 0.5
IMAGE_STD = 0.5
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

Pixels = npt.NDArray[np.uint8]


def digits() -> tuple[Pixels, list[str]]:
    """1,797 written digits (Alpaydin and Kaynak 1998): pixels [N, 1, 8, 8], labels "0" to "9"."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise TrainError(
            "the data set digits is a part of scikit-learn, which is not installed: "
            "pip install 'kvik[train]'"
        ) from error
    found = load_digits()
    # 0 to 16 in the data set.
    pixels = np.rint(found.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    return pixels, [str(label) for label in found.target]


def image_files(folder: Path) -> list[tuple[Path, str]]:
    """(file, label) of FOLDER/LABEL/*.png and the like, in order of label and name."""
    labels = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    found = [
        (file, label.name)
        for label in labels
        for file in sorted(label.rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    if len({label for _, label in found}) < 2:
        raise TrainError(
            f"{folder} needs two subfolders with images at least, each named by its label; found "
            f"{', '.join(path.name for path in labels) or 'none'}"
        )
    return found


def read_images(files: list[tuple[Path, str]], size: int, channels: int) -> Pixels:
    """Pixels [N, channels, size, size]: each image scaled to fill a square, and cut to it."""
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise TrainError(
            "reading image files needs Pillow, which is not installed: pip install 'kvik[train]'"
        ) from error
    out = np.empty((len(files), channels, size, size), dtype=np.uint8)
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise TrainError(f"a model of {channels} channels reads no image files; they have 1 or 3")
    for row, (path, _) in zip(out, files, strict=True):
        try:
            with Image.open(path) as image:
                square = ImageOps.fit(image.convert(mode), (size, size))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise TrainError(
                f"{path} is not an image that Pillow reads: {error}; convert or remove it"
            ) from error
        pixels = np.asarray(square, dtype=np.uint8)
        row[:] = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return out
