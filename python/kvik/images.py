"""Images as a model takes them: read, cropped, scaled, normalised; and classified.

Scaling is bicubic interpolation with antialiasing, as Pillow's, which `kvik train` reads folders of
images with; Pillow rounds once more, between the two directions, in an order that depends on the
sizes. An array, a Pillow image and a file of the same pixels become the same numbers, and an array
needs no Pillow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from kvik.arguments import check_path
from kvik.errors import FileError, InvalidArgumentError, InvalidModelError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvik import _core

__all__ = ["ImageFormat", "ImageReader", "PillowImage", "fit", "is_image", "make_reader"]

_IMAGE = "kvik.image"  # a JSON object: size [height, width], channels, mean and std of each channel
_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with alpha
_CUBIC = -0.5  # Keys' parameter, as in Pillow
_SUPPORT = 2.0  # pixels to either side that cubic interpolation reads
# ITU-R 601, in 16 bits and with the rounding of Pillow's conversion to grey.
_GREY = np.array([19595, 38470, 7471])
_BATCH = 32  # images computed at once: more need more memory and are no faster

Pixels: TypeAlias = "npt.NDArray[np.float64]"  # [height, width, channels], 0 to 255


class PillowImage(Protocol):
    """A Pillow image, which this package does not import to know one."""

    @property
    def mode(self) -> str: ...
    def convert(self, mode: str) -> Any: ...


@dataclass(frozen=True)
class ImageFormat:
    """How a model wants its images: said by the file (kvik.image), or to :func:`kvik.load`.

    Pixels from 0 to 1 become (pixel - mean) / std.
    """

    size: tuple[int, int] | None = None  # height, width in pixels; None: as the graph declares
    channels: int | None = None  # 1 or 3; None: as the graph declares
    mean: tuple[float, ...] = (0.0,)  # of each channel, or one for all
    std: tuple[float, ...] = (1.0,)


def is_image(value: object) -> bool:
    """Whether it is an array or a Pillow image: what no text is."""
    return isinstance(value, np.ndarray) or (hasattr(value, "mode") and hasattr(value, "convert"))


def make_reader(
    core: _core.Model, metadata: Mapping[str, str], given: ImageFormat | None, file: Path
) -> ImageReader | None:
    """The reader of a model of images; None for other models.

    Raises:
        InvalidModelError: the metadata are malformed, or do not fit the graph.
        InvalidArgumentError: `given` does not fit the model.
        UnsupportedError: neither the graph nor anybody else says how large images are.
    """
    if not core.info.reads_images:
        if given is not None:
            raise InvalidArgumentError("image= is for models that read images; this one does not")
        return None
    said = given
    if said is None and _IMAGE in metadata:
        said = _read_format(metadata[_IMAGE], file)
    where = "image=" if given is not None else f"{file}: metadata {_IMAGE}"
    fault = InvalidArgumentError if given is not None else InvalidModelError
    batch, *declared = core.info.inputs[0].shape or [None] * 4
    known = said or ImageFormat()
    height, width = known.size or (None, None)
    sizes = []
    for name, wanted, own in zip(
        ("channels", "height", "width"), (known.channels, height, width), declared, strict=True
    ):
        size = wanted if wanted is not None else own
        if isinstance(own, int) and size != own:
            raise fault(f"{where} says {name} {wanted}; the graph takes {own}")
        if not isinstance(size, int):
            raise UnsupportedError(
                f"{file}: neither the graph nor metadata {_IMAGE} say the {name} of an image: load "
                "it with image=kvik.ImageFormat(size=(height, width), channels=3)"
            )
        if size < 1:
            raise fault(f"{where} says {name} {size}; expected at least 1")
        sizes.append(size)
    for name, values in (("mean", known.mean), ("std", known.std)):
        if len(values) not in (1, sizes[0]):
            raise fault(f"{where} has {len(values)} numbers for {name}, and {sizes[0]} channels")
        if not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
            raise fault(f"{where} has an impossible {name}: {list(values)}")
    return ImageReader(
        core, (sizes[1], sizes[2]), sizes[0], known if said is not None else None,
        batch if isinstance(batch, int) else None,
    )  # fmt: skip


class ImageReader:
    """Makes batches of what callers call an image, and runs them.

    Args:
        size: Height and width.
        form: None: nobody says how pixels are normalised.
        batch: What the graph declares; None: any.
    """

    def __init__(
        self,
        core: _core.Model,
        size: tuple[int, int],
        channels: int,
        form: ImageFormat | None,
        batch: int | None,
    ) -> None:
        self._core = core
        self._size = size
        self._channels = channels
        self._form = form
        self._batch = batch

    def images(self, given: object) -> tuple[list[object], bool]:
        """The images one by one, and whether there may be several.

        An array is a batch when it has four axes, or three and the last is no channels.
        """
        if isinstance(given, np.ndarray):
            if given.ndim == 4:
                return list(given), True
            if given.ndim == 3 and given.shape[2] not in _CHANNELS:
                if self._channels == 3 and given.shape[0] in _CHANNELS:
                    raise InvalidArgumentError(
                        f"an array of shape {list(given.shape)} seems to have its channels first; "
                        "images are [height, width, channels]: pass image.transpose(1, 2, 0)"
                    )
                return list(given), True
            return [given], False
        if isinstance(given, (list, tuple)):
            return list(given), True
        return [given], False

    def logits(self, images: Sequence[object]) -> npt.NDArray[np.float32]:
        """Float32 [images, labels]."""
        labels = self._core.info.encoded[0][1]
        rows = [np.zeros((0, labels), np.float32)]
        step = self._batch or _BATCH
        for begin in range(0, len(images), step):
            part = images[begin : begin + step]
            batch = np.zeros((self._batch or len(part), self._channels, *self._size), np.float32)
            for place, image in enumerate(part):
                batch[place] = self.read(image, f"image {begin + place}")
            rows.append(self._core.encode_images(batch)[: len(part)])
        return np.concatenate(rows)

    def feeds(self, image: object) -> dict[str, npt.NDArray[np.float32]]:
        """A batch of one image, for a session of the same file."""
        return {self._core.info.inputs[0].name: self.read(image)[None]}

    def read(self, image: object, where: str = "the image") -> npt.NDArray[np.float32]:
        """Float32 [channels, height, width], as the model takes it."""
        if isinstance(image, (str, os.PathLike)):
            path = check_path(image)
            where, image = str(path), _open(path)
        if not isinstance(image, np.ndarray):
            image = _from_pillow(image, where)
        whole = np.issubdtype(image.dtype, np.integer)
        form = self._form
        pixels = self._in_channels(self._checked(image, where), whole)
        scaled = fit(pixels, self._size, whole=whole, bounded=form is not None)
        if form is None:  # floats that are taken as they are
            return np.ascontiguousarray((scaled / 255.0).transpose(2, 0, 1), np.float32)
        # In float32 and in this order, as in training.
        values = scaled.astype(np.float32) / np.float32(255.0)
        mean, std = (np.asarray(x, np.float32) for x in (form.mean, form.std))
        return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1), np.float32)

    def _checked(self, image: npt.NDArray[Any], where: str) -> Pixels:
        """From 0 to 255, as [height, width, channels]."""
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3 or image.shape[2] not in _CHANNELS or 0 in image.shape:
            raise InvalidArgumentError(
                f"{where} is an array of shape {list(image.shape)}; expected [height, width] or "
                "[height, width, channels], of 1, 3 or 4 channels"
            )
        if np.issubdtype(image.dtype, np.integer):
            most = 255
        elif np.issubdtype(image.dtype, np.floating):
            most = 1
        else:
            raise InvalidArgumentError(
                f"{where} holds {image.dtype}; expected integers from 0 to 255, or floats from 0 "
                "to 1"
            )
        if self._form is None:
            if most == 1:
                return np.asarray(image, np.float64) * 255.0
            raise InvalidArgumentError(
                f"{where} has pixels from 0 to 255, and the file does not say how the model wants "
                "them normalised: load it with image=kvik.ImageFormat(mean=..., std=...), or pass "
                "floats that are normalised already"
            )
        low, high = image.min(), image.max()
        if not (low >= 0 and high <= most):  # NaN too
            advice = "divide by the largest value there can be" if most == 1 else "scale them"
            raise InvalidArgumentError(
                f"{where} has pixels from {low:.6g} to {high:.6g}; {image.dtype} pixels are from 0 "
                f"to {most}: {advice}"
            )
        return np.asarray(image, np.float64) * (255.0 / most)

    def _in_channels(self, pixels: Pixels, whole: bool) -> Pixels:
        """In the model's number of channels, grey or RGB; an alpha channel is dropped."""
        have, want = pixels.shape[2], self._channels
        if have == want:
            return pixels
        if want == 3:
            return np.repeat(pixels, 3, axis=2) if have == 1 else pixels[..., :3]
        if want == 1:
            weighted = pixels[..., :3] @ _GREY
            grey = (weighted + 0x8000) // 65536 if whole else weighted / 65536
            return np.asarray(grey[..., None], np.float64)
        raise InvalidArgumentError(
            f"the image has {have} channels and the model takes {want}: pass an array of "
            f"[height, width, {want}]"
        )


def fit(pixels: Pixels, size: tuple[int, int], *, whole: bool, bounded: bool = True) -> Pixels:
    """The largest part in the middle that has the shape of `size`, scaled to it.

    Args:
        pixels: [height, width, channels].
        size: Height and width wanted.
        whole: Round to whole numbers, as with 8 bits a pixel.
        bounded: Keep within 0 to 255, which sharp edges would leave.
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    ratio = size[1] / size[0]
    box_height, box_width = float(height), float(width)
    if width / height >= ratio:
        box_width = ratio * height
    else:
        box_height = width / ratio
    across = _weights(width, (width - box_width) / 2, box_width, size[1])
    down = _weights(height, (height - box_height) / 2, box_height, size[0])
    scaled: Pixels = np.einsum("oh,hwc->owc", down, np.einsum("ow,hwc->hoc", across, pixels))
    scaled = np.floor(scaled + 0.5) if whole else scaled
    if bounded:
        scaled = np.clip(scaled, 0, 255)
    return scaled


def _weights(size: int, begin: float, length: float, wanted: int) -> Pixels:
    """[wanted, size]: what of each pixel goes into each new one, of pixels begin to begin + length.

    Where the image shrinks the kernel widens with it, which averages what would alias.
    """
    scale = length / wanted
    wide = max(scale, 1.0)
    weights = np.zeros((wanted, size))
    for place in range(wanted):
        centre = begin + (place + 0.5) * scale
        first = max(int(centre - _SUPPORT * wide + 0.5), 0)
        last = min(int(centre + _SUPPORT * wide + 0.5), size)
        x = np.abs((np.arange(first, last) - centre + 0.5) / wide)
        near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
        far = _CUBIC * (((x - 5) * x + 8) * x - 4)
        own = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        weights[place, first:last] = own / own.sum()
    return weights


def _read_format(text: str, file: Path) -> ImageFormat:
    expected = "a JSON object of size [height, width], channels, mean and std"

    def wrong(why: str = "") -> InvalidModelError:
        return InvalidModelError(
            f"{file}: metadata {_IMAGE} must be {expected}; found {text[:80]!r}{why}"
        )

    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        raise wrong() from None
    if not isinstance(found, dict):
        raise wrong()
    size, channels = found.get("size"), found.get("channels")
    if not (isinstance(size, list) and len(size) == 2 and all(type(x) is int for x in size)):
        raise wrong(" (size)")
    if type(channels) is not int:
        raise wrong(" (channels)")
    numbers = []
    for name in ("mean", "std"):
        values = found.get(name)
        if not isinstance(values, list) or not all(type(x) in (int, float) for x in values):
            raise wrong(f" ({name})")
        numbers.append(tuple(map(float, values)))
    return ImageFormat((size[0], size[1]), channels, numbers[0], numbers[1])


def _open(path: Path) -> object:
    """An array from a .npy file, else what Pillow reads."""
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except OSError as error:
            raise FileError(f"can't read {path}: {error.strerror or error}") from error
        except (ValueError, EOFError) as error:
            raise InvalidArgumentError(f"{path} is no array of numpy: {error}") from error
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"reading {path} needs Pillow, which is not installed: pip install pillow, or pass the "
            "pixels as a numpy array"
        ) from error
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise FileError(f"no such file: {path}") from error
    except IsADirectoryError as error:
        raise InvalidArgumentError(f"{path} is a folder: name the images in it") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidArgumentError(f"{path} is not an image that Pillow reads: {error}") from error


def _from_pillow(image: Any, where: str) -> npt.NDArray[np.uint8]:
    """Grey images as [height, width], all others as [height, width, 3]."""
    if not is_image(image):
        raise InvalidArgumentError(
            f"{where} must be a numpy array, a Pillow image or the path of a file; found "
            f"{type(image).__name__}"
        )
    grey = image.mode[0] in "1LIF"  # L, LA, I;16 and so on
    return np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)
