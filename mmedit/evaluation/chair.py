"""Object hallucination after CHAIR (Rohrbach et al., EMNLP 2018), before and after an edit.

CHAIR counts the objects that a caption names and the picture does not show. Its vocabulary there is COCO's 80 categories;
here it is the objects known of any judged picture, with the edit's own words.
"""

from __future__ import annotations

import re
from collections.abc import Collection


def mentions(caption: str, vocabulary: Collection[str]) -> list[str]:
    """The objects that a caption names, each time one is named; a regular plural names the object.

    Example:
        >>> mentions("two Cats and a boat", ["cat", "dog", "boat"])
        ['cat', 'boat']
    """
    if not vocabulary:
        return []
    longest_first = sorted(map(str.casefold, vocabulary), key=len, reverse=True)
    words = rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?:e?s)?(?!\w)"
    return [match.group(1) for match in re.finditer(words, caption.casefold())]


def chair_scores(
    before: str, after: str, objects: Collection[str], vocabulary: Collection[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """CHAIR of one picture's captions: `chair_s` is whether one names an object that is not there, `chair_i` the share of those.

    Args:
        before: the unedited model's caption.
        after: the edited model's.
        objects: what the picture shows.
        vocabulary: the words that count as objects.

    Returns:
        The scores, those of the caption before with `_before`, and the weights with which the `chair_i` are averaged over
        pictures: how many objects the caption names.

    Example:
        >>> scores, weights = chair_scores("a cat", "a dog and a boat", ["cat", "boat"], ["cat", "dog", "boat"])
        >>> scores["chair_i_before"], scores["chair_i"], weights["chair_i"], scores["chair_s"]
        (0.0, 0.5, 2.0, 1.0)
    """
    there = {word.casefold() for word in objects}
    scores, weights = {}, {}
    for suffix, caption in (("_before", before), ("", after)):
        said = mentions(caption, vocabulary)
        wrong = sum(word not in there for word in said)
        scores[f"chair_s{suffix}"] = float(wrong > 0)
        if said:
            scores[f"chair_i{suffix}"], weights[f"chair_i{suffix}"] = wrong / len(said), float(len(said))
    return scores, weights
