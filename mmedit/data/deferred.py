"""Pictures that are made when they are first looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image


class Deferred(Image.Image):  # type: ignore[misc]  # Pillow is not followed by mypy
    """A PIL picture that is drawn, or read, at its first use.

    A benchmark has thousands of pictures, and most runs look at some of them only.

    Args:
        make: gives the picture; called once, or again if it fails.

    Example:
        >>> calls = []
        >>> picture = Deferred(lambda: calls.append(1) or Image.new("RGB", (4, 6)))
        >>> len(calls), picture.size, picture.convert("L").size, len(calls)
        (0, (4, 6), (4, 6), 1)
    """

    def __init__(self, make: Callable[[], Image.Image]) -> None:
        self._make = make  # and nothing of what Image.__init__ sets, so that __getattr__ is asked for it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_make" not in self.__dict__:
            raise AttributeError(name)
        self.__dict__.update(self._make().copy().__dict__)  # copy: a plain picture, read from its file
        self.__dict__.pop("_make")
        return getattr(self, name)
