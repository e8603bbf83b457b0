"""Do the located neurons cause what is said? Noise on their rows against noise on as many others (Pan et al., Tables 5 and 11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmedit.analysis.survey import concepts_of
from mmedit.data.pictured import Pictured
from mmedit.editors.noise import N_NEURONS, SIGMA, noise
from mmedit.evaluation.bench import hash_of
from mmedit.evaluation.intervals import Estimate, estimate
from mmedit.evaluation.journal import Journal
from mmedit.evaluation.metrics import says
from mmedit.locate import rank
from mmedit.models.vlm import VisionLanguageModel
from mmedit.processes import ALONE, Processes
from mmedit.requests import Prompt
from mmedit.scorers import as_scorer
from mmedit.sightings import sightings


@dataclass(frozen=True)
class Perturbed:
    """One concept of one picture.

    Args:
        number: of the picture in its set.
        label: what to call the picture.
        word: the concept.
        caption: the model's own.
        neurons: those that the scorer chose.
        located: the caption with noise on them.
        random: the caption with noise on as many random ones.
    """

    number: int
    label: str
    word: str
    caption: str
    neurons: list[str]
    located: str
    random: str


def perturb(
    vlm: VisionLanguageModel, pictures: Sequence[Pictured], *, method: str = "contribution", sigma: float = SIGMA, n_neurons: int = N_NEURONS,
    prompt: str | Prompt | None = None, seed: int = 0, journal: Journal | None = None, processes: Processes = ALONE,
) -> Iterator[Perturbed]:  # fmt: skip
    """For every concept of every picture, caption again with noise on its neurons and with noise on random ones.

    Args:
        vlm: the model; the same at the end as at the start.
        pictures: the picture set.
        method: the scorer that chooses the neurons.
        sigma: the standard deviation of the noise; 0.5 in the paper.
        n_neurons: how many rows; 5 in the paper.
        prompt: as for `vlm.caption`.
        seed: of the noise and of the random neurons.
        journal: what is done already, and where to write what comes.
        processes: of which this one does its share.

    Yields:
        The concepts of this process's pictures in order.

    Raises:
        ImageError: if a picture cannot be read.
        ModelError: if the weights cannot be edited in place.
    """
    done = {line["number"]: line["concepts"] for line in journal.lines()} if journal else {}
    for number, picture in processes.share(list(enumerate(pictures))):
        if number not in done:
            done[number] = [vars(one) for one in _perturb(vlm, picture, number, method, sigma, n_neurons, prompt, seed)]
            if journal:
                journal.write({"number": number, "concepts": done[number]})
        yield from (Perturbed(**one) for one in done[number])


def _perturb(
    vlm: VisionLanguageModel, picture: Pictured, number: int, method: str, sigma: float, n: int, prompt: str | Prompt | None, seed: int
) -> Iterator[Perturbed]:  # fmt: skip
    scorer, others = as_scorer(method, seed), as_scorer("random", seed)
    options = scorer.options(vlm.architecture)
    seen = sightings(vlm, picture.image, lambda _, said: concepts_of(said, vlm.tokenizer), prompt, **options)
    chosen = rank(vlm, [[s] for s in seen], n, 0, scorer)
    by_chance = rank(vlm, [[s] for s in seen], n, 0, others)
    for i, (s, ranking, control) in enumerate(zip(seen, chosen, by_chance, strict=True)):
        captions = []
        for neurons in (ranking.neurons, control.neurons):
            with noise(vlm, neurons, sigma, hash_of(seed, f"{number} {i}")).applied(vlm):
                captions.append(vlm.caption(picture.image, prompt)[0])
        yield Perturbed(
            number,
            picture.label,
            s.occurrence.word,
            s.generation.text.strip(),
            list(map(str, ranking.neurons)),
            *captions,
        )


def word_lost(found: Sequence[Perturbed]) -> dict[str, Estimate]:
    """The share of concepts that are no longer said, with noise on the located neurons and on random ones."""
    groups = [one.number for one in found]
    return {
        name: estimate([float(not says(getattr(one, name), one.word)) for one in found], groups)
        for name in ("located", "random")
    }
