"""What the best neurons of each concept write: their top tokens and scores, for each method (Pan et al., Tables 2 and 9)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mmedit.analysis.survey import Surveyed


class TokenRow(NamedTuple):
    """One neuron of one concept of one picture."""

    picture: str
    caption: str
    concept: str
    method: str
    rank: int
    neuron: str
    score: float
    tokens: tuple[str, ...]


def token_table(found: Iterable[Surveyed], n_neurons: int = 5) -> Iterator[TokenRow]:
    """The best neurons of every concept by every method, with the tokens that they write.

    Args:
        found: the survey.
        n_neurons: how many of each, at most ten.

    Yields:
        A row for each neuron, in order of pictures, concepts and methods.
    """
    for surveyed in found:
        for concept in surveyed.concepts:
            for method, ranked in concept.rankings.items():
                shown = zip(ranked.neurons[:n_neurons], ranked.scores, ranked.tokens, strict=False)
                for rank, (neuron, score, tokens) in enumerate(shown, 1):
                    yield TokenRow(
                        surveyed.label, surveyed.caption, concept.word, method, rank, str(neuron), score, tokens
                    )
