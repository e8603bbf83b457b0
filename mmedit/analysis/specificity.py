"""Are the neurons of one concept neurons of others too? (Pan et al., Eq. 8, Table 4, Figs. 5 and 7)

S@k of a concept against another is the share of its top k neurons that are not among the other's top k; it is averaged over
pairs. *Related* concepts stand in the same caption, *random* ones are drawn from captions that do not name the concept.
The paper's own text of Eq. 8 was not at hand when this was written; this is our reading of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmedit.analysis.cross_image import shared
from mmedit.analysis.survey import Concept, Surveyed
from mmedit.data.pictured import Pictured
from mmedit.evaluation.intervals import Estimate, estimate
from mmedit.locate import rank_given
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron
from mmedit.requests import Prompt
from mmedit.sightings import source_sightings

KS = (1, 5, 10, 50)


def specificity(
    found: Iterable[Surveyed], method: str = "contribution", ks: Sequence[int] = KS, n_random: int = 5, seed: int = 0
) -> dict[str, dict[int, Estimate]]:
    """S@k against related and against random concepts.

    Args:
        found: the survey.
        method: whose rankings.
        ks: how many neurons.
        n_random: random concepts for each concept.
        seed: of the drawing.

    Returns:
        For `related` and `random`, for each k the mean with its interval from resampling pictures.
    """
    pictures = list(found)
    rng = random.Random(seed)
    pool = [concept for surveyed in pictures for concept in surveyed.concepts]
    pairs: dict[str, list[tuple[int, Concept, Concept]]] = {"related": [], "random": []}
    for surveyed in pictures:
        named = {concept.word.casefold() for concept in surveyed.concepts}
        for concept in surveyed.concepts:
            pairs["related"] += [
                (surveyed.number, concept, other) for other in surveyed.concepts if other is not concept
            ]
            others = [c for c in rng.sample(pool, min(len(pool), 20 * n_random)) if c.word.casefold() not in named]
            pairs["random"] += [(surveyed.number, concept, other) for other in others[:n_random]]
    return {
        kind: {k: estimate([_specific(a, b, method, k) for _, a, b in listed], [n for n, _, _ in listed]) for k in ks}
        for kind, listed in pairs.items()
        if listed
    }


def _specific(concept: Concept, other: Concept, method: str, k: int) -> float:
    """S@k of one concept against one other, Eq. 8."""
    return 1 - shared([concept.rankings[method].neurons, other.rankings[method].neurons], k)


@dataclass(frozen=True)
class Heatmap:
    """How much each concept's best neuron contributes to each concept.

    Args:
        words: the concepts.
        neurons: the best neuron of each.
        scores: `[n_words, n_neurons]`, the mean contribution score over pictures of the word.
    """

    words: tuple[str, ...]
    neurons: tuple[Neuron, ...]
    scores: npt.NDArray[np.float64]


def concept_neuron_heatmap(
    vlm: VisionLanguageModel, pictures: Sequence[Pictured], found: Sequence[Surveyed], *, method: str = "contribution",
    n_concepts: int = 12, n_pictures: int = 5, prompt: str | Prompt | None = None,
) -> Heatmap:  # fmt: skip
    """The contribution of the best neurons of the commonest concepts to each of these concepts.

    Args:
        vlm: the model.
        pictures: the picture set of the survey.
        found: the survey.
        method: whose best neurons.
        n_concepts: the commonest so many.
        n_pictures: at most so many for each concept.
        prompt: that of the survey.

    Returns:
        Words in order of their number of pictures; a neuron that is the best of several stands there once.
    """
    of_word: dict[str, list[tuple[int, Concept]]] = {}
    for surveyed in found:
        for concept in surveyed.concepts:
            of_word.setdefault(concept.word.casefold(), []).append((surveyed.number, concept))
    words = sorted(of_word, key=lambda word: (-len(of_word[word]), word))[:n_concepts]
    best = [_commonest([c.rankings[method].neurons[0] for _, c in of_word[word]]) for word in words]
    neurons = tuple(dict.fromkeys(best))
    scores = np.zeros((len(words), len(neurons)))
    for row, word in enumerate(words):
        shown = [pictures[number].image for number, _ in of_word[word][:n_pictures]]
        ranking = rank_given(vlm, source_sightings(vlm, shown, word, prompt), neurons, n_tokens=0)
        score: Mapping[Neuron, float] = {record.neuron: record.score for record in ranking}
        scores[row] = [score[neuron] for neuron in neurons]
    return Heatmap(tuple(words), neurons, scores)


def _commonest(neurons: Sequence[Neuron]) -> Neuron:
    return max(dict.fromkeys(neurons), key=neurons.count)
