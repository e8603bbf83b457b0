"""Pictures of a user's own: files and folders of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from mmedit.errors import ImageError
from mmedit.requests import as_list


def picture_files(places: str | Path | Iterable[str | Path]) -> list[Path]:
    """The picture files that paths stand for.

    Args:
        places: files and folders, one or several; a folder stands for the pictures in it, in order of their names.

    Returns:
        The files.

    Raises:
        ImageError: if a path does not exist, or a folder holds no picture.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (4, 4)).save(folder / "b.png"); Image.new("RGB", (4, 4)).save(folder / "a.png")
        >>> [path.name for path in picture_files(folder)]
        ['a.png', 'b.png']
    """
    found: list[Path] = []
    for place in map(Path, as_list(places) if isinstance(places, str | Path) else places):
        inside = sorted(path for path in place.iterdir() if _is_picture(path)) if place.is_dir() else [place]
        if not inside:
            raise ImageError("a folder without pictures", where=place, expected="PNG, JPEG, WebP, …")
        if not place.exists():
            raise ImageError("no such picture or folder", where=place, do="check the path")
        found += inside
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in Image.registered_extensions() and path.is_file()
