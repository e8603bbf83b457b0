"""Writing files so that they appear whole or not at all, and one process at a time."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from mmap import mmap
from pathlib import Path
from secrets import token_hex

from mmedit.errors import OutputError
from mmedit.locks import Lock

_claims: ContextVar[frozenset[Path]] = ContextVar("claims", default=frozenset())
"""The files that this thread alone may write now."""


@contextmanager
def replacing(path: str | Path, wait: bool = False) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success it takes the place of `path`, otherwise it is removed.

    One at a time writes a file, of all processes and threads. What a killed one left is removed by the next.

    Args:
        path: the file.
        wait: for another who writes it, as where both write the same into a cache.

    Raises:
        OutputError: if another is writing it, the folder does not exist or cannot be written, or the disk is full.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(target) as part:
        ...     _ = part.write_text("hello")
        >>> target.read_text()
        'hello'
    """
    target = Path(path)
    with _alone(target, wait), _temporary(target) as part:
        try:
            yield part
            part.chmod(_usual_mode(target))
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


@contextmanager
def claimed(path: str | Path) -> Iterator[None]:
    """Be the only one to write a file, from before long work until it is written; this thread may write it meanwhile.

    Raises:
        OutputError: at once, if another is writing it or it cannot be written here.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with claimed(target):
        ...     write_text(target, "after long work")
    """
    target = Path(path)
    with _alone(target):
        with _temporary(target):  # which says what a lock would not, such as a name too long
            pass
        yield


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
def _alone(target: Path, wait: bool = False) -> Iterator[None]:
    """Be the only one to write a file; nothing new where this thread is that already."""
    claims, place = _claims.get(), Path(os.path.realpath(target.parent), target.name)
    if place in claims:
        yield
        return
    lock = Lock(target)
    try:
        try:
            with _here(target):
                lock.take(wait)
                if lock.left:
                    _clean(target)
            _claims.set(claims | {place})
            yield
        finally:
            _claims.set(claims)
            lock.drop()
    finally:
        _claims.set(claims)
        lock.drop()  # again, for a Ctrl-C on the threshold of the first


def _clean(target: Path) -> None:
    """Remove temporary files; nobody is at work any more, so their makers are dead."""
    remains = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.part")
    for beside in target.parent.iterdir():
        if remains.fullmatch(beside.name):
            _remove(beside)


@contextmanager
def _temporary(target: Path, mode: int = 0o600) -> Iterator[Path]:
    """An empty temporary file beside the target, which nobody else may read; gone after every exit."""
    part = target.parent / f".{target.name}.{token_hex(8)}.part"  # named first, so that no Ctrl-C can lose it
    try:
        try:
            with _here(target):
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            yield part
        finally:
            _remove(part)
    finally:
        _remove(part)  # again, as above


def _usual_mode(target: Path) -> int:
    """The mode that any new file beside the target has: asked of one, for the umask can be read only by setting it, for all threads."""
    with _temporary(target, 0o666) as new:
        return stat.S_IMODE(new.stat().st_mode)


@contextmanager
def _here(target: Path) -> Iterator[None]:
    """Say what is wrong where a file cannot be made beside its target, which is no device or pipe to be replaced by a file."""
    try:
        if target.exists() and not target.is_file():
            raise OutputError(
                "this is a folder" if target.is_dir() else "this is not a regular file",
                where=target,
                expected="a file's path",
            )
        yield
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
