"""Text of strangers, so that it can be shown: file names, captions, names in patch files."""

from __future__ import annotations

import json
import re

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
