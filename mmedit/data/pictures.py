"""Pictures of a user's own: files, folders, globs, lists with captions, and Hugging Face datasets."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmedit.data.deferred import Deferred
from mmedit.data.pictured import CAPTION_COLUMNS, SUFFIXES, read_list, there
from mmedit.data.pictured import Pictured as Pictured
from mmedit.errors import ImageError
from mmedit.models.images import load_image


def read_pictures(places: Any) -> list[Pictured]:
    """The pictures that some places stand for, none of them opened.

    Args:
        places: one of these, or several in a list:

            - a picture file;
            - a folder: the pictures in it and below, in order of their paths, without hidden ones. Each real folder is read
              once, whatever links lead to it. With a `metadata.csv` or `metadata.jsonl`, as Hugging Face's image folders
              have, the pictures that this lists;
            - a glob such as `cats/*.png` or `**/cat*`; folders that it matches stand for their pictures;
            - a `.csv` or `.jsonl` file with a column `image`, `path` or `file_name`, relative to the file's folder, and
              optionally `caption` (or `text`) and `objects` (a list, or words between `;` or `,`);
            - a PIL picture or an array;
            - a `datasets.Dataset` with a column `image`, and the same optional ones.

    Returns:
        The pictures, in that order.

    Raises:
        DataError: if a list cannot be read; it says in which line.
        ImageError: if a picture or folder is missing, a folder or glob holds none, or something is no place of pictures.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.png", "a.PNG"):
        ...     Image.new("RGB", (4, 4)).save(folder / name)
        >>> [picture.image.name for picture in read_pictures(folder)]
        ['a.PNG', 'b.png']
        >>> [picture.image.name for picture in read_pictures(str(folder / "b.*"))]
        ['b.png']
    """
    found: list[Pictured] = []
    for place in _several(places):
        found += _read(place, len(found) + 1)
    return found


def _several(places: Any) -> list[Any]:
    one = isinstance(places, str | os.PathLike | Image.Image | np.ndarray | Mapping | Pictured)
    return [places] if one or _is_dataset(places) or not isinstance(places, Iterable) else list(places)


def _read(place: Any, number: int) -> list[Pictured]:
    if isinstance(place, Pictured):
        return [place]
    if isinstance(place, Image.Image | np.ndarray):
        return [Pictured(place, label=f"picture {number}")]
    if _is_dataset(place):
        return _in_dataset(place)
    if isinstance(place, str | os.PathLike):
        try:
            return _at(Path(place))
        except (OSError, ValueError) as error:  # no permission, too long a name, no pattern
            raise ImageError(
                "cannot look for pictures here", where=place, got=str(error), do="check the path"
            ) from error
    raise ImageError(
        "not a place of pictures", got=type(place).__name__,
        expected="a path, a glob, a PIL picture, a numpy array or a datasets.Dataset",
    )  # fmt: skip


def _at(path: Path) -> list[Pictured]:
    if path.is_dir():
        listed = [path / name for name in ("metadata.jsonl", "metadata.csv") if (path / name).is_file()]
        return read_list(listed[0]) if listed else _in_folder(path)
    if path.exists():
        return read_list(path) if path.suffix.lower() in SUFFIXES else [Pictured(path, label=path.name)]
    if glob.has_magic(str(path)):
        return _matching(path)
    raise ImageError("no such picture or folder", where=path, do="check the path")


def _in_folder(folder: Path) -> list[Pictured]:
    files = sorted(_walk(folder, set()))
    if not files:
        raise ImageError("a folder without pictures", where=folder, expected="PNG, JPEG, WebP, …")
    return [Pictured(there(file), label=str(Path(folder.name, file.relative_to(folder)))) for file in files]


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Files that are pictures by their names, in a folder and those below; hidden ones and folders seen are left out."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:  # through a link to a folder above, or to one read already
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names if not name.startswith(".") and _is_picture(name))


@cache
def _suffixes() -> frozenset[str]:
    """Of the formats that Pillow can read."""
    known = Image.registered_extensions()  # also those that it can only write
    return frozenset(suffix for suffix, name in known.items() if name in Image.OPEN)


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in _suffixes()


def _matching(pattern: Path) -> list[Pictured]:
    fixed = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    base, rest = Path(*pattern.parts[:fixed]), Path(*pattern.parts[fixed:])
    hidden = any(part.startswith(".") for part in rest.parts)  # found only if asked for
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for match in sorted(base.glob(str(rest))):
        if hidden or not any(part.startswith(".") for part in match.relative_to(base).parts):
            files += _walk(match, seen) if match.is_dir() else [match] if _is_picture(match.name) else []
    if not files:
        raise ImageError("no picture is called so", where=pattern, do="check the pattern")
    return [Pictured(there(file), label=str(file)) for file in sorted(set(files))]


def _is_dataset(place: Any) -> bool:
    """Whether this is a dataset of Hugging Face's package, told by its face: the package need not be there."""
    return hasattr(place, "column_names")


def _in_dataset(dataset: Any) -> list[Pictured]:
    if isinstance(dataset, Mapping):
        raise ImageError("a dataset of several splits", got=list(dataset), do="choose one, such as dataset['train']")
    if not hasattr(dataset, "__len__"):
        raise ImageError("a dataset that is streamed", got=type(dataset).__name__, do="load it without streaming=True")
    if "image" not in dataset.column_names:
        raise ImageError("a dataset without a column `image`", got=dataset.column_names, do="rename the column")
    columns = {n: list(dataset[n]) for n in (*CAPTION_COLUMNS, "objects") if n in dataset.column_names}
    found = []
    for i in range(len(dataset)):
        row = {name: column[i] for name, column in columns.items()}
        found.append(Pictured.of_row(Deferred(partial(_decoded, dataset, i)), row, f"row {i}", f"row {i}"))
    return found


def _decoded(dataset: Any, i: int) -> Image.Image:
    value = dataset[i]["image"]
    if isinstance(value, Mapping):  # as the package gives it under Image(decode=False)
        value = Image.open(BytesIO(value["bytes"])) if value.get("bytes") else value.get("path")
    return load_image(value)
