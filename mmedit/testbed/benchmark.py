"""Concept swaps in IconWorld: for each an edit picture, other pictures with the source, and pictures without it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import permutations

from mmedit.testbed.world import NOUNS, Arrangement, Scene, scene

SINGULAR: tuple[Arrangement, ...] = ("one", "beside", "above")  # the caption has the noun itself, not its plural


@dataclass(frozen=True)
class SwapCase:
    """One concept swap with its pictures, none of which stands twice."""

    source: str
    target: str
    edit: Scene
    related: tuple[Scene, ...]
    unrelated: tuple[Scene, ...]


def swap_cases(split: str, n: int, n_related: int = 16, n_unrelated: int = 32) -> list[SwapCase]:
    """The first swaps of a split; sources go round all nouns, so that every kind has its share.

    Args:
        split: `validation` or `benchmark`.
        n: how many swaps, at most one for each ordered pair of nouns.
        n_related: other pictures with the source, per swap.
        n_unrelated: pictures without it, per swap.

    Returns:
        The cases, the same on every machine.

    Raises:
        ValueError: if there are not as many pairs.

    Example:
        >>> case = swap_cases("benchmark", 1)[0]
        >>> case.source in case.edit.nouns, any(case.source in drawn.nouns for drawn in case.unrelated)
        (True, False)
    """
    pairs = list(permutations(NOUNS, 2))
    if not 0 < n <= len(pairs):
        raise ValueError(f"swap_cases(n={n}): there are 1 to {len(pairs)} swaps")
    rng = random.Random(f"swaps of {split}")
    rng.shuffle(pairs)
    queues = {noun: [pair for pair in pairs if pair[0] == noun] for noun in NOUNS}
    in_turn = [queues[noun][turn] for turn in range(len(NOUNS) - 1) for noun in rng.sample(NOUNS, len(NOUNS))]
    per_case, cases = 1 + n_related + n_unrelated, []
    for index, (source, target) in enumerate(in_turn[:n]):
        first = 10**6 + index * per_case  # beyond the numbers that other uses of the split begin with
        shown = [scene(split, first + i, include=source, arrangement=SINGULAR[i % 3]) for i in range(1 + n_related)]
        hidden = [scene(split, first + 1 + n_related + i, exclude=(source,)) for i in range(n_unrelated)]
        cases.append(SwapCase(source, target, shown[0], tuple(shown[1:]), tuple(hidden)))
    return cases
