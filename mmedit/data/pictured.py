"""A picture with what is known of it, and lists of such pictures in CSV and JSONL."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from mmedit.data.strangers import parse_json, read_text
from mmedit.errors import DataError, ImageError

SUFFIXES = (".csv", ".jsonl")
PICTURE_COLUMNS = ("image", "path", "file_name")
CAPTION_COLUMNS = ("caption", "text")


@dataclass(frozen=True)
class Pictured:
    """A picture with what is known of it.

    Args:
        image: a path, a PIL picture or an array; not opened yet.
        caption: what a list says of it.
        objects: the nouns of what it shows, where a list says so.
        label: what to call it in reports.
    """

    image: Any
    caption: str | None = None
    objects: tuple[str, ...] | None = None
    label: str = ""

    @classmethod
    def of_row(cls, image: Any, row: Mapping[str, Any], where: str, label: str) -> Pictured:
        """A picture with the caption and objects of a row.

        Raises:
            DataError: if they are of another form.
        """
        caption = next((row[column] for column in CAPTION_COLUMNS if row.get(column) is not None), None)
        if caption is not None and not isinstance(caption, str):
            raise DataError("a caption is a text", where=where, got=type(caption).__name__)
        return cls(image, caption, _objects(row.get("objects"), where), label)


def _objects(value: Any, where: str) -> tuple[str, ...] | None:
    words = re.split("[;,]", value) if isinstance(value, str) else value
    if words is None:
        return None
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        expected = "a list of words, or `cat; dog`"
        raise DataError("objects are nouns", where=where, got=type(value).__name__, expected=expected)
    return tuple(word.strip() for word in words if word.strip())


def read_list(file: Path) -> list[Pictured]:
    """The pictures that a CSV or JSONL file lists; see `read_pictures` for its columns.

    Raises:
        DataError: for a line that cannot be read; it says which.
        ImageError: if a picture is missing, or there is none.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "list.jsonl")
        >>> _ = file.write_text('{"image": "list.jsonl", "objects": "cat; dog"}')
        >>> read_list(file)[0].objects
        ('cat', 'dog')
    """
    rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _jsonl_rows(file)
    found = [_pictured(row, file.parent, f"{file}, line {line}") for line, row in rows]
    if not found:
        raise ImageError("a list without pictures", where=file, expected="a line for each picture")
    return found


def _csv_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(StringIO(read_text(file), newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                got, where = f"{row[None]} besides", f"{file}, line {reader.line_num}"
                raise DataError("more fields than columns", where=where, got=got, expected=reader.fieldnames)
            yield reader.line_num, {name: value or None for name, value in row.items()}
    except csv.Error as error:
        raise DataError("not CSV", where=f"{file}, line {reader.reader.line_num}", got=str(error)) from error


def _jsonl_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, text in enumerate(read_text(file).split("\n"), 1):
        if text.strip():
            row = parse_json(text, f"{file}, line {line}")
            if not isinstance(row, dict):
                raise DataError("not a JSON object", where=f"{file}, line {line}", got=type(row).__name__)
            yield line, row


def _pictured(row: Mapping[str, Any], folder: Path, where: str) -> Pictured:
    name = next((row[column] for column in PICTURE_COLUMNS if row.get(column) is not None), None)
    if not isinstance(name, str):
        got = f"columns {', '.join(row)}" if name is None else type(name).__name__
        raise DataError("no picture is named", where=where, got=got, expected=f"a path in {', '.join(PICTURE_COLUMNS)}")
    return Pictured.of_row(there(folder / name, where), row, where, name)


def there(file: Path, where: object = None) -> Path:
    """The path of a picture file, which is there.

    Raises:
        ImageError: if it is not; a link that leads to nothing, or to itself, is not.
    """
    try:
        if file.is_file():
            return file
        got = "a folder" if file.is_dir() else "a link to nothing" if file.is_symlink() else "nothing there"
    except (OSError, ValueError) as error:  # too long a name, no permission
        got = str(error)
    raise ImageError("no such picture", where=where or file, got=f"{file}: {got}", do="check the path")
