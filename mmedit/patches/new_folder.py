"""Writing a folder so that it appears whole or not at all, and putting files into it without reading them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mmedit.errors import OutputError

Link = Literal["copy", "reflink", "hard"]
FICLONE = 0x40049409  # Linux: share another file's blocks
STRETCH = 2**30  # bytes per system call
CANNOT = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EMLINK}
"""What a file system answers that cannot do a thing, rather than has failed to do it."""


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success it becomes `path` by one rename, otherwise it is removed.

    One process at a time writes a folder. What a killed one left is removed by the next.

    Raises:
        OutputError: if `path` exists and is no empty folder, another process is writing it, or it cannot be written.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "new"
        >>> with new_folder(target) as part:
        ...     _ = (part / "note.txt").write_text("hello")
        >>> [entry.name for entry in target.parent.rglob("*")]
        ['new', 'note.txt']
    """
    target = Path(path).absolute()
    try:
        with _alone(target):
            check_free(target)
            remains = re.compile(rf"\.{re.escape(target.name)}\.part-\d+-\w+")
            for left in target.parent.iterdir():  # nobody else is at work, so their makers are dead
                if remains.fullmatch(left.name):
                    shutil.rmtree(left)
            part = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-{os.getpid()}-", dir=target.parent))
            try:
                yield part
                _settle(part)
                part.rename(target)
                _sync(target.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            "cannot write this folder", where=target, got=str(error), do="free some space or choose another place"
        ) from error


def check_free(path: str | Path) -> None:
    """Raise OutputError unless a path is free for a new folder: nothing is there, or an empty folder."""
    target = Path(path)
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise OutputError("this exists already", where=target, expected="a new folder or an empty one", do="choose another name")  # fmt: skip


def place(source: Path, target: Path, link: Link = "copy") -> None:
    """Put a file into a folder with the bytes of another.

    Args:
        source: the file to take.
        target: where to put it; nothing is there.
        link: `copy` its bytes, or share them: `reflink` where the file system can (the copies stay independent), `hard`
            for one file under two names.

    Raises:
        OutputError: if the file system cannot share bytes so.
        OSError: if it cannot be read or written.
    """
    try:
        if link == "hard":
            os.link(source.resolve(), target)
        elif link == "reflink":
            _reflink(source, target)
        else:
            _copy(source, target)
    except OSError as error:
        if link == "copy" or error.errno not in CANNOT:
            raise
        raise OutputError(f"no {link} link can be made here", where=target.parent, got=str(error), expected="a file system that can, and both folders on it", do="use link='copy'") from error  # fmt: skip


def _copy(source: Path, target: Path) -> None:
    """Copy within the kernel, without a buffer of ours, and what it cannot copy by hand."""
    with source.open("rb") as read, target.open("xb") as write:
        try:
            while os.copy_file_range(read.fileno(), write.fileno(), STRETCH):
                pass
        except (OSError, AttributeError) as error:  # Linux only
            if getattr(error, "errno", errno.ENOSYS) not in CANNOT:
                raise
        if write.tell() < os.fstat(read.fileno()).st_size:
            shutil.copyfileobj(read, write, 2**23)


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as write:
        fcntl.ioctl(write.fileno(), FICLONE, read.fileno())


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock on writing a folder; the system lets go of it when the process ends, however it ends."""
    lock = target.parent / f".{target.name}.lock"
    while True:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), lock.stat()):
                break  # the file that we hold is the one that others see
        except FileNotFoundError:  # its last holder has just removed it
            os.close(handle)
        except BlockingIOError as error:
            os.close(handle)
            raise OutputError("another process is writing this folder", where=target, do="wait for it") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _settle(folder: Path) -> None:
    """Have everything on the disk, with the usual permissions."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
