"""Text of strangers, so that it can be shown: file names, captions, names in patch files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, keep: str = "") -> str:
    r"""A text in which what a terminal or page would obey, or could not show, is written out.

    Control characters can move a terminal's cursor or worse, marks of direction can show a line backwards, and half a
    character, which Python makes of a file name that is not UTF-8, cannot be encoded at all.

    Args:
        text: any text.
        keep: what to leave all the same, such as the line ends of what has several lines.

    Returns:
        The text with these characters as JSON writes them: `\n`, `\u001b`, `\u202e`, …; so JSON stays the same JSON.

    Example:
        >>> print(printable("cat\x1b[2J\n.png"))
        cat\u001b[2J\n.png
    """
    return _UNSHOWN.sub(lambda found: found[0] if found[0] in keep else json.dumps(found[0])[1:-1], str(text))


def json_text(value: Any) -> str:
    """JSON in lines; null for a number that JSON does not have.

    Example:
        >>> json_text([1.5, math.nan]).split()
        ['[', '1.5,', 'null', ']']
    """
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
