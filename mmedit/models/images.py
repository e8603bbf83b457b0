"""Pictures in any form a user has them, as the upright 8-bit RGB that every processor understands."""

from __future__ import annotations

import hashlib
import os
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
    if isinstance(source, Image.Image):
        return _rgb(source, "a PIL picture")
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source), "an array")
    if not isinstance(source, str | os.PathLike):
        raise ImageError("not a picture", got=type(source).__name__, expected="a path, a PIL picture or a numpy array")
    path = Path(source)
    if not path.is_file():
        raise ImageError("no such picture", where=path, got="a folder" if path.is_dir() else "nothing there", do="check the path")
    try:
        with Image.open(path) as image:
            return _rgb(image, path)
    except UnidentifiedImageError as error:
        raise ImageError("not a picture", where=path, got="a file that no image reader recognises", expected="PNG, JPEG, WebP, …") from error


def image_digest(source: Any) -> str:
    """SHA-256 of a picture's size and RGB pixels, the same however the picture was given."""
    image = load_image(source)
    return hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()


def _rgb(image: Image.Image, where: object) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _from_array(np.asarray(image))
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError("this picture is broken", where=where, got=str(error), do="open it in a viewer and save it again") from error
    if not image.width or not image.height:
        raise ImageError("this picture is empty", where=where, got=f"{image.width}x{image.height} pixels")
    return image


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise ImageError("not a picture's shape", got=array.shape, expected="[height, width] or [height, width, 1 | 3 | 4]")
    if array.dtype == np.uint8:
        levels = array
    elif array.dtype.kind in "iu" and 0 <= array.min() and array.max() <= 65535:
        levels = (array // 257).astype(np.uint8)
    elif array.dtype.kind == "f" and np.isfinite(array).all() and 0 <= array.min() and array.max() <= 1:
        levels = (array * 255).round().astype(np.uint8)
    else:
        got = f"{array.dtype} from {array.min()} to {array.max()}"
        raise ImageError("not a picture's values", got=got, expected="uint8, uint16, or float from 0 to 1")
    return Image.fromarray(levels[..., 0] if levels.ndim == 3 and levels.shape[2] == 1 else levels)
