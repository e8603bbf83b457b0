"""Writing a folder so that it appears whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from mmedit.errors import OutputError
from mmedit.locks import Lock


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success it becomes `path` by one rename, otherwise it is removed.

    One process at a time writes a folder. What a killed one left is removed by the next.

    Raises:
        OutputError: if `path` exists and is no empty folder, another process is writing it, or it cannot be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "new"
        >>> with new_folder(target) as part:
        ...     _ = (part / "note.txt").write_text("hello")
        >>> [entry.name for entry in target.parent.rglob("*")]
        ['new', 'note.txt']
    """
    target = Path(path).absolute()
    try:
        with Lock(target) as lock:
            check_free(target)
            remains = re.compile(rf"\.{re.escape(target.name)}\.part-\d+-\w+")
            for left in (
                target.parent.iterdir() if lock.held else ()
            ):  # nobody else is at work, so their makers are dead
                if remains.fullmatch(left.name):
                    shutil.rmtree(left)
            part = (
                target.parent / f".{target.name}.part-{os.getpid()}-{token_hex(8)}"
            )  # named first, as in mmedit.files
            try:
                part.mkdir(0o700)
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


def _settle(folder: Path) -> None:
    """Have everything on the disk, with the usual permissions."""
    (usual := folder / token_hex(8)).mkdir()
    mode = usual.stat().st_mode
    usual.rmdir()
    folder.chmod(stat.S_IMODE(mode))
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
