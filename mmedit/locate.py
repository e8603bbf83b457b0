"""Which neurons write a word: caption, score every neuron where the word is said, rank.

The scorer decides what makes a neuron one of the word's (`mmedit/scorers/`); contribution scores (Pan et al., Eq. 2) unless
another is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from mmedit.concepts import Occurrence
from mmedit.errors import ModelError, RequestError
from mmedit.models.top_tokens import top_tokens
from mmedit.models.vlm import Generation, VisionLanguageModel
from mmedit.neuron import Neuron, NeuronRanking, RankedNeuron, Site, by_site
from mmedit.nouns import noun_tokens
from mmedit.requests import Prompt, as_list
from mmedit.scorers import Scorer, as_scorer
from mmedit.sightings import Sighting, sightings, source_sightings


def locate_word(
    vlm: VisionLanguageModel,
    images: Any,
    source: str,
    prompt: str | Prompt | None = None,
    *,
    scorer: str | Scorer = "contribution",
    seed: int = 0,
    k: int = 100,
    n_tokens: int = 10,
    **options: Any,
) -> NeuronRanking:
    """Rank neurons for a source word, over one picture or several.

    Args:
        vlm: the model.
        images: pictures that show the source.
        source: a word of each picture's caption.
        prompt: as for `vlm.caption`.
        scorer: `contribution`, o · (W_out[i] · W_U[:, t]) where the word's token t is predicted (Pan et al., Eq. 2);
            `activation`, o at the prompt's last token (their baseline *Base*); `attribution`, the greatest activation ×
            gradient over the image positions (*Mmns*, Schwettmann et al. 2023), by one backward pass for each occurrence;
            `random`; or a `mmedit.scorers.Scorer`.
        seed: for `random`.
        k: how many neurons to keep.
        n_tokens: how many tokens of each neuron to show.
        options: `activation`, `final_norm`, `layers`, `batch_size`, as for `sightings`.

    Returns:
        The ranking over all layers, scores averaged over all occurrences of the source. Its activations are those where the
        word is predicted, whatever the scorer looks at.

    Raises:
        RequestError: if the source is not in a caption (it shows the caption and its nouns), or an option is unknown or
            means nothing to the scorer.
        ModelError: for `attribution` with a model that has no image positions; for scores that are not finite.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> ranking = mmedit.locate_word(mmedit.load("iconworld-llava"), picture, things[0].noun, k=5)
        >>> len(ranking), ranking.captions == (caption,)
        (5, True)
    """
    method = as_scorer(scorer, seed)
    seen = source_sightings(vlm, images, source, prompt, **method.options(vlm.architecture, **options))
    return rank(vlm, [seen], k, n_tokens, method)[0]


def locate_nouns(
    vlm: VisionLanguageModel,
    images: Any,
    prompt: str | Prompt | None = None,
    *,
    scorer: str | Scorer = "contribution",
    seed: int = 0,
    k: int = 100,
    n_tokens: int = 10,
    **options: Any,
) -> list[list[NeuronRanking]]:
    """Rank neurons for every noun of every picture's caption.

    Args:
        vlm: the model.
        images: one picture or several.
        prompt: as for `vlm.caption`.
        scorer: as for `locate_word`.
        seed: for `random`.
        k: how many neurons to keep for each noun.
        n_tokens: how many tokens of each neuron to show.
        options: as for `locate_word`.

    Returns:
        For each picture, one ranking per noun in reading order.

    Raises:
        RequestError: for an empty list of pictures, or an option that is unknown or out of range.
        ModelError: as for `locate_word`.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> rankings = mmedit.locate_nouns(mmedit.load("iconworld-llava"), picture, k=3)[0]
        >>> rankings[0].source == things[0].noun
        True
    """

    def choose(picture: int, generation: Generation) -> list[Occurrence]:
        ids, found = generation.ids, noun_tokens(generation.ids, vlm.tokenizer)
        return [Occurrence(n.noun.text, n.noun.start, n.index, ids[n.index], n.n_tokens) for n in found]

    method = as_scorer(scorer, seed)
    seen = sightings(vlm, images, choose, prompt, **method.options(vlm.architecture, **options))
    rankings: list[list[NeuronRanking]] = [[] for _ in as_list(images)]
    for sighting, ranking in zip(seen, rank(vlm, [[sighting] for sighting in seen], k, n_tokens, method), strict=True):
        rankings[sighting.picture].append(ranking)
    return rankings


def rank(
    vlm: VisionLanguageModel, words: Sequence[Sequence[Sighting]], k: int = 100, n_tokens: int = 10,
    scorer: str | Scorer = "contribution",
) -> list[NeuronRanking]:  # fmt: skip
    """Rank neurons over all layers for several words at once; by contribution, with one read of each W_out.

    Args:
        vlm: the model.
        words: for each word its sightings, in one picture or several.
        k: how many neurons to keep for each word.
        n_tokens: how many of the tokens that each neuron writes to show.
        scorer: as for `locate_word`; the sightings were made with its `options`.

    Returns:
        For each word its ranking, by the mean score over its sightings.

    Raises:
        RequestError: if `k` is below 1, or there is no such scorer.
        ModelError: if a score is not a finite number.
    """
    method = as_scorer(scorer)
    if k < 1:
        raise RequestError("a ranking holds at least one neuron", got=f"k={k}", expected="1 or more")
    if not words:
        return []
    scores = method.scores(vlm, [sighting for seen in words for sighting in seen])
    sites, best, start = sorted(scores), [], 0
    for seen in words:
        best.append(_best({site: scores[site][start : start + len(seen)].mean(0) for site in sites}, k))
        start += len(seen)
    return _rankings(vlm, words, best, n_tokens, method)


def rank_given(
    vlm: VisionLanguageModel, seen: Sequence[Sighting], neurons: Sequence[Neuron], n_tokens: int = 10,
    scorer: str | Scorer = "contribution",
) -> NeuronRanking:  # fmt: skip
    """Score neurons of the user's choice for one word, in place of the best ones.

    Args:
        vlm: the model.
        seen: sightings of the word.
        neurons: which neurons, each once.
        n_tokens: how many of the tokens that each neuron writes to show.
        scorer: as for `rank`.

    Returns:
        The ranking of these neurons alone.

    Raises:
        RequestError: if the list is empty, a neuron stands there twice, or it is not among the layers that were looked at.
    """
    method = as_scorer(scorer)
    scores = method.scores(vlm, seen)
    for neuron in neurons:
        vlm.architecture.check(neuron)
    if not neurons or len(set(neurons)) < len(neurons) or any(neuron.site not in scores for neuron in neurons):
        raise RequestError(
            "neurons to edit are distinct and in the chosen layers",
            got=[str(n) for n in neurons],
            expected=f"neurons of {', '.join(map(str, scores))}",
        )
    best = [(neuron, float(scores[neuron.site][:, neuron.unit].mean())) for neuron in neurons]
    return _rankings(vlm, [seen], [sorted(best, key=lambda item: (-item[1], item[0]))], n_tokens, method)[0]


def _best(means: dict[Site, Tensor], k: int) -> list[tuple[Neuron, float]]:
    """The k neurons with the greatest mean score over all sites, which are in order; of equals the first in the model."""
    scores = torch.cat([*means.values()])
    if not scores.isfinite().all():
        site, wrong = next((site, mean[~mean.isfinite()]) for site, mean in means.items() if not mean.isfinite().all())
        raise ModelError(
            "a neuron's score is not a finite number", where=str(site), got=f"{wrong[0]}",
            do="load the model in float32 or bfloat16, and check its weights",
        )  # fmt: skip
    least = scores.topk(min(k, len(scores))).values[-1]
    places = (scores >= least).nonzero().flatten()  # sorting these alone is far quicker
    values, order = scores[places].sort(descending=True, stable=True)
    sites, starts = [*means], [0, *accumulate(map(len, means.values()))]
    found = []
    for value, place in zip(values[:k].tolist(), places[order[:k]].tolist(), strict=True):
        number = bisect_right(starts, place) - 1
        found.append((Neuron(sites[number].layer, place - starts[number], sites[number].expert), value))
    return found


def _rankings(
    vlm: VisionLanguageModel, words: Sequence[Sequence[Sighting]], best: Sequence[list[tuple[Neuron, float]]], n_tokens: int,
    scorer: Scorer,
) -> list[NeuronRanking]:  # fmt: skip
    chosen = list(dict.fromkeys(neuron for found in best for neuron, _ in found))  # words share many
    tokens = dict(zip(chosen, top_tokens(vlm, chosen, n_tokens), strict=True))
    rankings = []
    for seen, found in zip(words, best, strict=True):
        records = tuple(RankedNeuron(neuron, value, tokens[neuron]) for neuron, value in found)
        o = _activations(seen, [neuron for neuron, _ in found])
        captions = tuple({s.picture: s.generation.text.strip() for s in seen}.values())
        label, said = scorer.label(vlm.architecture, seen[0]), seen[0].occurrence
        rankings.append(NeuronRanking(records, said.word, said.token_id, o, label, captions))
    return rankings


def _activations(seen: Sequence[Sighting], neurons: Sequence[Neuron]) -> tuple[float, ...]:
    """The mean activation of each neuron over some sightings."""
    sites = by_site(neurons)
    units = {site: [neurons[place].unit for place in places] for site, places in sites.items()}
    o = torch.stack([torch.cat([s.activations[site][at].cpu() for site, at in units.items()]) for s in seen])
    means = dict(zip(chain(*sites.values()), o.double().mean(0).tolist(), strict=True))
    return tuple(means[place] for place in range(len(neurons)))
