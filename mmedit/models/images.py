"""Pictures in any form a user has them, as the upright 8-bit RGB that every processor understands."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmedit.errors import ImageError


def load_image(source: Any) -> Image.Image:
    """Read one picture.

    Args:
        source: a path, a PIL picture of any mode, or an array: uint8 0 to 255, uint16 0 to 65535 or float 0 to 1, of
            shape `[height, width]` or `[height, width, 1 | 3 | 4]`.

    Returns:
        The picture in RGB, turned upright after its EXIF tag, transparent parts on white.

    Raises:
        ImageError: if it is missing, broken, not a picture, or an array of another form.

    Example:
        >>> load_image(np.zeros((4, 6), np.uint8)).size
        (6, 4)
    """
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source, "an array"), "an array")
    if isinstance(source, Image.Image):
        with _reading("a PIL picture"):
            return _rgb(source, "a PIL picture")
    if not isinstance(source, str | os.PathLike):
        raise ImageError("not a picture", got=type(source).__name__, expected="a path, a PIL picture or a numpy array")
    path = Path(source)
    with _reading(path):
        if not path.is_file():
            got = "a folder" if path.is_dir() else "nothing there"
            raise ImageError("no such picture", where=path, got=got, do="check the path")
        with Image.open(path) as image:
            return _rgb(image, path)


def image_digest(source: Any) -> str:
    """SHA-256 of a picture's size and RGB pixels, the same however the picture was given."""
    image = load_image(source)
    return hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()


@contextmanager
def _reading(where: object) -> Iterator[None]:
    """Turn whatever Pillow's readers raise on broken data, which can be anything, into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        got = "a file that no image reader recognises"
        raise ImageError("not a picture", where=where, got=got, expected="PNG, JPEG, WebP, …") from error
    except Exception as error:
        got = str(error) or type(error).__name__
        raise ImageError("cannot read this picture", where=where, got=got, do="check that a viewer opens it") from error


def _rgb(image: Image.Image, where: object) -> Image.Image:
    if not image.width or not image.height:
        raise ImageError("this picture is empty", where=where, got=f"{image.width}x{image.height} pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        levels = np.asarray(image)
        if image.mode == "I" and levels.min() >= 0 and levels.max() <= 65535:  # how older Pillows read 16-bit greys
            levels = levels.astype(np.uint16)
        image = _from_array(levels, where)
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_array(array: np.ndarray[Any, Any], where: object) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        expected = "[height, width] or [height, width, 1 | 3 | 4]"
        raise ImageError("not a picture's shape", where=where, got=array.shape, expected=expected)
    if array.dtype == np.uint8:
        levels = array
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        levels = (array // 257).astype(np.uint8)
    elif array.dtype.kind == "f" and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        levels = (array * 255).round().astype(np.uint8)
    else:
        got = f"{array.dtype} from {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else array.dtype
        raise ImageError("not a picture's values", where=where, got=got, expected="uint8, uint16, or float from 0 to 1")
    return Image.fromarray(levels[..., 0] if levels.ndim == 3 and levels.shape[2] == 1 else levels)
