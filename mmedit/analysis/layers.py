"""In which layers multi-modal neurons are (Pan et al., Fig. 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from mmedit.analysis.survey import Surveyed
from mmedit.neuron import Neuron

KS = (1, 10, 50, 100, 500, 1000)


def unique_neurons_per_layer(
    found: Iterable[Surveyed], layers: Sequence[int], method: str = "contribution", ks: Sequence[int] = KS
) -> dict[int, dict[int, int]]:
    """How many different neurons each layer has among the top k of any concept of any picture.

    Args:
        found: the survey.
        layers: the decoder layers, so that one without such neurons has its 0.
        method: whose rankings.
        ks: how many neurons of each concept.

    Returns:
        For each k that the survey's rankings reach, the number of neurons by layer.

    Example:
        >>> from mmedit.analysis.survey import Concept, Ranked
        >>> a, b = (Concept("cat", 0, 7, {"contribution": Ranked((Neuron(1, 2), Neuron(0, unit)), (), ())}) for unit in (3, 4))
        >>> unique_neurons_per_layer([Surveyed(0, "", "", (a, b))], [0, 1], ks=[1, 2])
        {1: {0: 0, 1: 1}, 2: {0: 2, 1: 1}}
    """
    unique: dict[int, set[Neuron]] = {k: set() for k in ks}
    longest = 0
    for surveyed in found:
        for concept in surveyed.concepts:
            neurons = concept.rankings[method].neurons
            longest = max(longest, len(neurons))
            for k in ks:
                unique[k].update(neurons[:k])
    reached = [k for k in ks if k <= longest] or [min(ks)]
    counts = {k: Counter(neuron.layer for neuron in unique[k]) for k in reached}
    return {k: {layer: counts[k][layer] for layer in layers} for k in reached}
