"""Do the neurons of a concept stay the same from picture to picture? (Pan et al., Eq. 7, Figs. 4 and 6)

For N pictures with the same concept, the share of its top k neurons that all of them have.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from mmedit.analysis.survey import Surveyed
from mmedit.evaluation.intervals import Estimate, estimate
from mmedit.neuron import Neuron

KS, NS = (10, 100, 1000), (2, 3, 4, 5)


def shared(rankings: Sequence[Sequence[Neuron]], k: int) -> float:
    """The share of the top k neurons that all rankings have, Eq. 7.

    Example:
        >>> a, b, c = (Neuron(0, unit) for unit in range(3))
        >>> shared([[a, b, c], [b, c, a]], 2)
        0.5
    """
    return len(set.intersection(*(set(ranking[:k]) for ranking in rankings))) / k


def cross_image_invariance(
    found: Iterable[Surveyed], method: str = "contribution", ks: Sequence[int] = KS, ns: Sequence[int] = NS,
    draws: int = 10, seed: int = 0,
) -> dict[tuple[int, int], Estimate]:  # fmt: skip
    """The share of a concept's top k neurons common to N pictures of it, a mean over concepts.

    Args:
        found: the survey.
        method: whose rankings.
        ks: how many neurons; those that the rankings do not reach are left out.
        ns: how many pictures.
        draws: sets of N pictures that are drawn for each concept that more than N pictures have.
        seed: of the drawing.

    Returns:
        For each (k, N) the mean, its interval from resampling concepts, and the number of sets of pictures. A pair for which no
        concept has enough pictures is left out.
    """
    of_word: dict[str, list[Sequence[Neuron]]] = {}
    for surveyed in found:
        for concept in surveyed.concepts:
            of_word.setdefault(concept.word.casefold(), []).append(concept.rankings[method].neurons)
    shortest = min((len(ranking) for rankings in of_word.values() for ranking in rankings), default=0)
    result = {}
    for n in ns:
        rng = random.Random(f"{seed} {n}")
        sets = [
            (word, rng.sample(rankings, n))
            for word, rankings in sorted(of_word.items())
            if len(rankings) >= n
            for _ in range(1 if len(rankings) == n else draws)
        ]
        for k in (k for k in ks if k <= shortest and sets):
            result[k, n] = estimate([shared(rankings, k) for _, rankings in sets], [word for word, _ in sets])
    return result
