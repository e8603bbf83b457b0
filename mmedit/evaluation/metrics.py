"""What counts as right: whole captions, before and after an edit."""

from __future__ import annotations

import re


def replaced(caption: str, source: str, target: str) -> str:
    """The caption that a swap should give: every whole-word source replaced, nothing else changed.

    Example:
        >>> replaced("a red cat on the grass", "cat", "dog")
        'a red dog on the grass'
    """
    return re.sub(rf"(?<!\w){re.escape(source)}(?!\w)", lambda match: target, caption, flags=re.IGNORECASE)


def is_swapped(before: str, after: str, source: str, target: str) -> bool:
    """Whether a caption that had the source is now the same caption with the target in its place.

    Example:
        >>> is_swapped("a red cat", "a red dog", "cat", "dog"), is_swapped("a red cat", "a dog", "cat", "dog")
        (True, False)
    """
    wanted = replaced(before, source, target)
    return wanted != before and after == wanted


def changed_words(before: str, after: str) -> list[tuple[str, bool]]:
    """The words of the new caption, each with whether it differs from the old one.

    Example:
        >>> changed_words("a red cat", "a red dog")
        [('a', False), ('red', False), ('dog', True)]
    """
    from difflib import SequenceMatcher

    old, new = before.split(), after.split()
    same = {
        i
        for block in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
        for i in range(block.b, block.b + block.size)
    }
    return [(word, i not in same) for i, word in enumerate(new)]
