"""What counts as right: whole captions, before and after an edit."""

from __future__ import annotations

import re
from collections.abc import Mapping


def all_replaced(caption: str, swaps: Mapping[str, str]) -> str:
    """The caption that some swaps should give: every whole-word source replaced, at once, nothing else changed.

    Args:
        caption: the old caption.
        swaps: for each source, in any case, its target.

    Returns:
        The new caption.

    Example:
        >>> all_replaced("a cat and a dog", {"cat": "dog", "dog": "boat"})
        'a dog and a boat'
    """
    if not swaps:
        return caption
    longest_first = sorted(swaps, key=len, reverse=True)
    words = rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)"
    targets = {source.casefold(): target for source, target in swaps.items()}
    return re.sub(words, lambda m: targets.get(m[0].casefold(), m[0]), caption, flags=re.IGNORECASE)


def replaced(caption: str, source: str, target: str) -> str:
    """The caption that one swap should give.

    Example:
        >>> replaced("a red cat on the grass", "cat", "dog")
        'a red dog on the grass'
    """
    return all_replaced(caption, {source.casefold(): target})


def is_replaced(before: str, after: str, swaps: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether a caption is the old one with all of some swaps made and, word by word, any or none of others.

    Args:
        before: the old caption.
        after: the new one.
        swaps: for each source, in lower case, its target.
        others: the same for those that may be made or not.

    Example:
        >>> [is_replaced("a cat and a bird", after, {"cat": "dog"}, {"bird": "kite"}) for after in ("a dog and a bird", "a dog and a kite")]
        [True, True]
        >>> is_replaced("a cat and a bird", "a dog and a boat", {"cat": "dog"}, {"bird": "kite"})
        False
    """
    if not others:
        return after == all_replaced(before, swaps)
    every = sorted({**others, **swaps}, key=len, reverse=True)
    pattern, done = "", 0
    for match in re.finditer(rf"(?<!\w)(?:{'|'.join(map(re.escape, every))})(?!\w)", before, re.IGNORECASE):
        word = match.group().casefold()
        allowed = [swaps[word]] if word in swaps else [match.group(), others.get(word, match.group())]
        pattern += re.escape(before[done : match.start()]) + f"(?:{'|'.join(map(re.escape, allowed))})"
        done = match.end()
    return re.fullmatch(pattern + re.escape(before[done:]), after) is not None


def says(caption: str, word: str) -> bool:
    """Whether a word stands in a caption, as a whole word.

    Example:
        >>> says("two cats", "cat"), says("a Cat", "cat")
        (False, True)
    """
    return all_replaced(caption, {word.casefold(): ""}) != caption


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
