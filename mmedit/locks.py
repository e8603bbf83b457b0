"""One writer at a time: a lock on a file or folder, held against other processes and other threads."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mmedit.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where of two writers the last to end wins whole
    fcntl = None  # type: ignore[assignment]

UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system says that knows no locks; there too the last to end wins whole."""


class Lock:
    """The lock on writing a file or folder, one file beside it; the system lets go of it when the process ends, however it ends.

    Args:
        target: what is to be written.

    Example:
        >>> import tempfile
        >>> with Lock(Path(tempfile.mkdtemp()) / "folder") as lock:
        ...     lock.held
        True
    """

    def __init__(self, target: Path) -> None:
        self.target, self.place = target, target.parent / f".{target.name}.lock"
        self.held = self.left = False
        self._file: BinaryIO | None = None

    def take(self, wait: bool = False) -> None:
        """Take it; `held` is then true, but where the system knows no locks, and `left` if a killed process may have left something.

        Args:
            wait: for another who holds it.

        Raises:
            OutputError: if another holds it and there is no waiting; OSError: if no file can be made in this folder.
        """
        left = self.place.exists()
        while fcntl is not None:
            self._file = open(self.place, "a+b", opener=_no_link)  # noqa: SIM115 (`drop` closes it)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if os.path.samestat(os.fstat(self._file.fileno()), self.place.stat()):
                    self.held, self.left = True, left
                    return  # the file that we hold is the one that others see
            except FileNotFoundError:
                pass  # its last holder has just removed it
            except BlockingIOError as error:
                what, do = "another process or thread is writing this", "wait for it, or choose another name"
                raise OutputError(what, where=self.target, do=do) from error
            except OSError as error:
                if error.errno not in UNLOCKABLE:
                    raise
                return self.place.unlink(missing_ok=True)
            self._file.close()

    def drop(self) -> None:
        """Let go of it, if it is held."""
        held, self.held = self.held, False
        if held:
            with suppress(OSError):  # in a folder that can be written no more
                self.place.unlink()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Lock:
        try:
            self.take()
        except BaseException:
            self.drop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()


def _no_link(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)
