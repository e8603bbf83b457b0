"""Sensitivity: how much the tokens that a concept's neurons write mean the concept (Pan et al. 2024, section 3, Table 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TypeAlias

from mmedit.errors import RequestError

Concept: TypeAlias = tuple[str, Sequence[Sequence[str]]]
"""A concept's word, and for each of its neurons the tokens that the neuron writes."""
Metric: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Candidates and references, in pairs, to scores."""


def sensitivity(concepts: Sequence[Concept], metric: Metric, joined: bool = False) -> float:
    """The mean score between the concepts of one picture and the tokens of their neurons.

    Args:
        concepts: each with the tokens of its neurons; in the paper 10 tokens of each of 10 neurons. Space around a token
            is dropped.
        metric: `BertScore`, `MoverScore`, `Bleurt`, or anything called like them; tokens are the candidates, the concept is
            the reference. Each pair is scored once, however often it occurs.
        joined: compare each neuron's tokens as one text, instead of one by one. The paper names only the two sides that
            it compares.

    Returns:
        The mean over concepts of the mean over each one's tokens (or neurons, where joined).

    Raises:
        RequestError: if there are no concepts, or a concept has no neurons or a neuron no tokens.

    Example:
        >>> same = lambda tokens, words: [float(token == word) for token, word in zip(tokens, words)]
        >>> sensitivity([("cat", [[" cat", " dog"], [" cat", " cats"]]), ("hat", [[" hat"]])], same)
        0.75
    """
    return mean_sensitivity([concepts], metric, joined)


def mean_sensitivity(pictures: Sequence[Sequence[Concept]], metric: Metric, joined: bool = False) -> float:
    """The mean over pictures of their `sensitivity`: one number of Table 3.

    Args:
        pictures: the concepts of each picture; one without concepts is left out.
        metric: as for `sensitivity`; called once, with the different pairs of all pictures.
        joined: as for `sensitivity`.

    Returns:
        The mean.

    Raises:
        RequestError: if no picture has a concept, or a concept has no neurons or a neuron no tokens.

    Example:
        >>> same = lambda tokens, words: [float(token == word) for token, word in zip(tokens, words)]
        >>> mean_sensitivity([[("cat", [[" cat"]])], [("hat", [[" hat", " coat"]])], []], same)
        0.75
    """
    found = [[_pairs(concept, joined) for concept in concepts] for concepts in pictures if concepts]
    if not found:
        raise RequestError("no concepts given", got=f"{len(pictures)} pictures, none with a concept")
    pairs = sorted({pair for concepts in found for concept in concepts for pair in concept})
    scores = dict(zip(pairs, metric([token for token, _ in pairs], [word for _, word in pairs]), strict=True))
    return fmean(fmean(fmean(scores[pair] for pair in concept) for concept in concepts) for concepts in found)


def _pairs(concept: Concept, joined: bool) -> list[tuple[str, str]]:
    """What is compared for a concept: candidate and reference of each score."""
    word, neurons = concept
    texts = [[token.strip() for token in tokens] for tokens in neurons]
    if not texts or not all(texts):
        raise RequestError("a concept without tokens", where=word, expected="neurons with at least one token each")
    return [(text, word) for tokens in texts for text in ([" ".join(tokens)] if joined else tokens)]
