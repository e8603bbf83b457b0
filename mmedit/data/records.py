"""A record of a stranger's benchmark file: its fields are checked where they are read."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from mmedit.data.pictured import there
from mmedit.errors import DataError, ImageError

MAX_TEXT = 2**16  # characters; the longest of the known sets are paragraphs


class Skipped(Exception):
    """A record that its format leaves out, with the reason."""


@dataclass(frozen=True)
class Options:
    """How to read a file; see `load_cases`."""

    images: Path
    rephrase_images: Path
    template: str | None = None
    hop: int | None = None
    skip_missing: bool = False


@dataclass(frozen=True)
class Record:
    """A JSON object of somebody else's file.

    Args:
        values: the object.
        where: its place in the file, for messages.
        id: its number in the file.
        options: how to read it.
    """

    values: Mapping[str, Any]
    where: str
    id: str
    options: Options

    @classmethod
    def of(cls, value: Any, where: str, id: str, options: Options) -> Record:
        """Check that a JSON value is an object.

        Raises:
            DataError: if it is not.
        """
        if not isinstance(value, dict):
            raise DataError("a record is a JSON object", where=where, got=reprlib.repr(value))
        return cls(value, where, id, options)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def value(self, key: str) -> Any:
        """What stands under a key, of any type."""
        if key not in self.values:
            got = f"only {', '.join(map(reprlib.repr, self.values))}"
            raise DataError("a record lacks a field", where=self.where, got=got[:300], expected=f"also {key!r}")
        return self.values[key]

    def text(self, key: str) -> str:
        """A text; it may be empty."""
        value = self.value(key)
        if not isinstance(value, str) or len(value) > MAX_TEXT or re.search("[\ud800-\udfff]", value):
            expected = f"a text of at most {MAX_TEXT} characters"
            raise DataError("not a text", where=self.place(key), got=reprlib.repr(value), expected=expected)
        return value

    def filled(self, key: str) -> str:
        """A text without the white space around it; a record where nothing is left is skipped."""
        if not (text := self.text(key).strip()):
            raise Skipped(f"`{key}` is empty")
        return text

    def answer(self, key: str) -> str | None:
        """A text without the white space around it, or None where nothing is left."""
        return self.text(key).strip() or None

    def asked(self, key: str, default: str = "{}") -> str:
        """A question in the template that was chosen, or in the format's own."""
        return (self.options.template or default).replace("{}", self.filled(key))

    def picture(self, key: str, rephrase: bool = False) -> Path:
        """The path of a picture below the folder of the pictures, or of the rephrased ones; it is not opened.

        A record is a stranger's: absolute paths and `..` are refused. Links in the folder are the user's own, and followed.
        """
        name = self.filled(key)
        if PureWindowsPath(name).anchor or ".." in re.split(r"[/\\]", name):  # an anchor is `/`, `\\` or `C:`
            expected = "a path below the folder of the pictures"
            raise DataError("a picture outside its folder", where=self.place(key), got=reprlib.repr(name), expected=expected)  # fmt: skip
        try:
            return there((self.options.rephrase_images if rephrase else self.options.images) / name, self.place(key))
        except ImageError:
            if self.options.skip_missing:
                raise Skipped(f"no picture under `{key}`") from None
            raise

    def child(self, key: str) -> Record:
        """The object under a key."""
        return Record.of(self.value(key), self.place(key), self.id, self.options)

    def children(self, key: str) -> list[Record]:
        """The list of objects under a key."""
        values = self.value(key)
        if not isinstance(values, list):
            raise DataError("not a list", where=self.place(key), got=reprlib.repr(values))
        return [Record.of(v, f"{self.place(key)}[{i}]", self.id, self.options) for i, v in enumerate(values)]

    def place(self, key: str) -> str:
        """Where a field is, for messages."""
        return f"{self.where}.{key}"
