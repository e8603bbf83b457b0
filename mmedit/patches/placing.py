"""Putting the bytes of a file into another one: shared where the file system can, else written straight to the disk.

What is written past the page cache is on the disk when the call returns, and takes no memory in which other files lie. So
a copy that must be on the disk before it is shown costs no more than one that need not.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Literal

from mmedit.errors import OutputError
from mmedit.files import write_all

Link = Literal["copy", "reflink", "hard"]
FICLONE = 0x40049409  # Linux: share another file's blocks
PAGE = 4096  # direct writes begin and end on a multiple of this
STRETCH = 2**25  # bytes that are mapped and written at a time
CANNOT = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EMLINK}
"""What a file system answers that cannot do a thing, rather than has failed to do it."""


def place(source: Path, target: Path, link: Link = "copy", left_out: Iterable[tuple[int, int]] = ()) -> None:
    """Put a file into a folder with the bytes of another.

    Args:
        source: the file to take.
        target: where to put it; nothing is there.
        link: `reflink` to share its blocks (the files stay independent), `hard` for one file under two names, `copy` for a
            reflink where the file system can, as `cp` does it, and else a copy.
        left_out: stretches that the caller writes next, from a byte up to but not including another; what a copy has there
            is undefined.

    Raises:
        OutputError: if the file system cannot share bytes so.
        OSError: if it cannot be read or written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a").write_bytes(b"weights" * 1000)
        >>> place(folder / "a", folder / "b")
        >>> (folder / "b").read_bytes() == (folder / "a").read_bytes()
        True
    """
    try:
        if link == "hard":
            os.link(source.resolve(), target)
            return
        with source.open("rb") as read, target.open("xb") as write:
            if not _cloned(read.fileno(), write.fileno(), required=link == "reflink"):
                _copy(read.fileno(), write.fileno(), target, left_out)
    except OSError as error:
        if link == "copy" or error.errno not in CANNOT:
            raise
        raise OutputError(f"no {link} link can be made here", where=target.parent, got=str(error), expected="a file system that can, and both folders on it", do="use link='copy'") from error  # fmt: skip


def _cloned(read: int, write: int, required: bool) -> bool:
    """Share the blocks of one open file with another; whether that was done."""
    try:
        fcntl.ioctl(write, FICLONE, read)
    except OSError as error:
        if required or error.errno not in CANNOT:
            raise
        return False
    return True


def _copy(read: int, write: int, target: Path, left_out: Iterable[tuple[int, int]]) -> None:
    """Write the bytes of an open file, which are mapped and never copied in memory, to another one."""
    size, direct = os.fstat(read).st_size, _open_direct(target)
    try:
        for start, stop in _stretches(size, left_out):
            with mmap(read, stop - start, access=ACCESS_READ, offset=start) as mapped:
                if hasattr(os, "posix_fadvise"):  # have the next stretch read while this one is written
                    os.posix_fadvise(read, stop, STRETCH, os.POSIX_FADV_WILLNEED)
                if stop % PAGE or direct is None or not _wrote_direct(direct, mapped, start):
                    write_all(write, mapped, start)
        os.ftruncate(write, size)  # where the end is left out
    finally:
        if direct is not None:
            os.close(direct)


def _stretches(size: int, left_out: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut a file into stretches that begin and end with a page, but for the last page; pages that are left out are skipped.

    Example:
        >>> list(_stretches(30_000, [(9000, 20_000)]))
        [(0, 12288), (16384, 28672), (28672, 30000)]
    """
    whole, done = size - size % PAGE, 0
    for first, stop in [*sorted(left_out), (whole, whole)]:
        end = min(whole, first + -first % PAGE)
        yield from ((start, min(start + STRETCH, end)) for start in range(done, end, STRETCH))
        done = max(done, end, stop - stop % PAGE)
    if whole < size:
        yield whole, size


def _open_direct(target: Path) -> int | None:
    """A handle for writing past the page cache; None where there is no such thing."""
    try:
        return os.open(target, os.O_WRONLY | os.O_DIRECT)
    except AttributeError:  # Linux only
        return None
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        return None


def _wrote_direct(handle: int, data: mmap | memoryview, place: int) -> bool:
    """Write bytes past the page cache; False if this file system wants other boundaries or cannot do it."""
    try:
        write_all(handle, data, place)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        return False
    return True
