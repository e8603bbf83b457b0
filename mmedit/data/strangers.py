"""Reading files that others wrote: every fault is a DataError that says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmedit.errors import DataError

MAX_BYTES = 2**30  # the largest benchmark known has some 50 MB


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        DataError: if it is missing, cannot be read, is larger than a list can be, or is no text.
    """
    try:
        if path.is_dir() or (size := path.stat().st_size) > MAX_BYTES:
            got = "a folder" if path.is_dir() else f"{size:,} bytes"
            raise DataError("not a file of records", where=path, got=got, expected=f"at most {MAX_BYTES:,} bytes")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError("cannot read this file", where=path, got=str(error), expected="a text file in UTF-8") from error


def parse_json(text: str, where: object) -> Any:
    """A JSON value.

    Raises:
        DataError: if the text is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        got = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError("not JSON", where=where, got=got) from error
