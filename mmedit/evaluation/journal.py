"""Results written as they come, one JSON line each, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mmedit.errors import OutputError
from mmedit.files import make_folder


class Journal:
    """The lines of one run in a folder, a file for each process that takes part.

    The first line of each file holds the settings of the run; a folder with others is refused. A line that was cut off in the
    middle counts as not written.

    Args:
        folder: made if it is not there.
        name: begins the names of the files.
        settings: what decides the results, as plain JSON values.
        process: the number of this process.

    Raises:
        OutputError: if the folder cannot be written, holds results of other settings, or is in use by another run.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Journal(folder, "run", {"seed": 0}) as journal:
        ...     journal.write({"case": "a"})
        >>> with Journal(folder, "run", {"seed": 0}) as journal:
        ...     list(journal.lines())
        [{'case': 'a'}]
    """

    def __init__(self, folder: str | Path, name: str, settings: Mapping[str, Any], process: int = 0) -> None:
        self.folder, self.name = make_folder(folder), name
        self.settings = json.loads(json.dumps(settings))  # as it will be read back
        self.path = self.folder / f"{name}.{process}.jsonl"
        self._file = self._open()
        for path in self._parts():
            header = next(_complete(path), None)
            if header is not None and header != self._header:
                self._file.close()
                differ = sorted(k for k in {*header, *self._header} if header.get(k) != self._header.get(k))
                raise OutputError(
                    "this folder holds the results of another run", where=path, got=f"another {', '.join(differ)}",
                    do="choose another folder, or remove this one",
                )  # fmt: skip
        if self._file.tell() == 0:
            self.write(self._header)

    @property
    def _header(self) -> dict[str, Any]:
        return {"format": "mmedit-journal", **self.settings}

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one result; it is on disk when this returns."""
        try:
            self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError("cannot write results", where=self.path, got=str(error), do="free some space; then run again to go on") from error  # fmt: skip

    def lines(self) -> Iterator[dict[str, Any]]:
        """All results so far, of every process."""
        for path in self._parts():
            whole = _complete(path)
            next(whole, None)
            yield from whole

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}.*.jsonl"))

    def _open(self) -> Any:
        """The file of this process, for it alone, without a last line that was cut off."""
        try:
            file = self.path.open("a+b")
        except OSError as error:
            raise OutputError(
                "cannot write results", where=self.path, got=str(error), do="choose another folder"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise OutputError(
                "another run writes its results here", where=self.path, do="wait for it, or choose another folder"
            ) from error
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        return file


def _complete(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise OutputError("results that cannot be read", where=f"{path}, line {number}", got=str(error), do="remove the file") from error  # fmt: skip
        if not isinstance(value, dict):
            raise OutputError("results that cannot be read", where=f"{path}, line {number}", got=type(value).__name__, do="remove the file")  # fmt: skip
        yield value
