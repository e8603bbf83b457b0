"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from mmap import mmap
from pathlib import Path
from secrets import token_hex

from mmedit.errors import OutputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success it takes the place of `path`, otherwise it is removed.

    Raises:
        OutputError: if the folder does not exist or cannot be written, or the disk is full.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(target) as part:
        ...     _ = part.write_text("hello")
        >>> target.read_text()
        'hello'
    """
    target = Path(path)
    with _temporary(target) as part:
        try:
            yield part
            part.chmod(0o666 & ~_umask())
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(target)
        except OSError as error:
            raise OutputError(
                "cannot write this file", where=target, got=str(error), do="free some space or choose another place"
            ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def check_writable(path: str | Path) -> None:
    """Raise OutputError unless a file can be written here, before anything long is begun."""
    with _temporary(Path(path)):
        pass


def make_folder(path: str | Path) -> Path:
    """Make a folder for results, with those above it, unless it is there.

    Raises:
        OutputError: if it cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            "cannot make or write this folder", where=folder, got=str(error), do="choose another place"
        ) from error
    return folder


def write_all(handle: int, data: mmap | memoryview, place: int) -> None:
    """Write bytes at a place in an open file; where the disk becomes full, a part is written, and the rest is an error."""
    done = 0
    with memoryview(data) as view:
        while done < len(view):
            with view[done:] as left:
                done += os.pwrite(handle, left, place + done)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """An empty temporary file beside the target, which nobody else may read; gone after every exit."""
    part = target.parent / f".{target.name}.{token_hex(8)}.part"  # named first, so that no Ctrl-C can lose it
    try:
        try:
            _make(part, target)
            yield part
        finally:
            _remove(part)
    finally:
        _remove(part)  # again, for a Ctrl-C on the threshold of the first


def _make(part: Path, target: Path) -> None:
    try:
        if target.exists() and not target.is_file():  # a device or pipe must not be replaced by a file
            raise OutputError(
                "this is a folder" if target.is_dir() else "this is not a regular file",
                where=target,
                expected="a file's path",
            )
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise OutputError(
            "cannot write a file here",
            where=target,
            got=str(error),
            do="choose a folder that exists and may be written",
        ) from error


def _remove(part: Path) -> None:
    with suppress(OSError):  # where it could not be made, there is nothing to remove
        part.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
