"""Ways to score neurons, one file each; every one turns words that the model said into a score for each neuron."""

from __future__ import annotations

from collections.abc import Callable

from mmedit.errors import RequestError
from mmedit.scorers.activation import Activation as Activation
from mmedit.scorers.attribution import Attribution as Attribution
from mmedit.scorers.base import Scorer as Scorer
from mmedit.scorers.contribution import Contribution as Contribution
from mmedit.scorers.random_neurons import RandomNeurons as RandomNeurons

SCORERS: dict[str, Callable[[int], Scorer]] = {
    "contribution": lambda seed: Contribution(),
    "activation": lambda seed: Activation(),
    "attribution": lambda seed: Attribution(),
    "random": RandomNeurons,
}
"""Every scorer by the name that hyperparameters and the command line use, made from a seed."""


def as_scorer(scorer: str | Scorer, seed: int = 0) -> Scorer:
    """A scorer by its name; one that is made already stays as it is.

    Args:
        scorer: `contribution` (Pan et al., Eq. 2), `activation` (their Base), `attribution` (Mmns), `random`, or a `Scorer`.
        seed: of the random numbers, for `random`.

    Raises:
        RequestError: if there is no such scorer.

    Example:
        >>> as_scorer("random", seed=3), as_scorer(Attribution()).name
        (RandomNeurons(seed=3), 'attribution')
    """
    if isinstance(scorer, Scorer):
        return scorer
    if scorer not in SCORERS:
        raise RequestError("no such scorer", got=repr(scorer), expected=f"{', '.join(SCORERS)}, or a Scorer")
    return SCORERS[scorer](seed)
