"""A survey: each picture's caption, and for each concept in it the ranking of every method. Most analyses are functions of one.

A picture is surveyed once, and written down as it comes; a survey that was cut off goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmedit.concepts import Occurrence
from mmedit.data.pictured import Pictured
from mmedit.evaluation.journal import Journal
from mmedit.locate import rank
from mmedit.models.top_tokens import top_tokens
from mmedit.models.vlm import Generation, VisionLanguageModel
from mmedit.neuron import Neuron, NeuronRanking
from mmedit.nouns import noun_tokens
from mmedit.processes import ALONE, Processes
from mmedit.requests import Prompt
from mmedit.scorers import as_scorer
from mmedit.sightings import sightings

METHODS = {"contribution": "contribution (ours)", "activation": "Base", "attribution": "Mmns"}
"""The methods that the paper compares, by the name of their scorer, with what it calls them."""

N_TOKENS = 10  # of each shown neuron
N_SHOWN = 10  # neurons with their tokens
N_SCORED = 100  # neurons with their scores


@dataclass(frozen=True)
class Ranked:
    """The best neurons for a concept by one method, best first.

    Args:
        neurons: all that were kept.
        scores: of the first hundred.
        tokens: what each of the first ten writes most strongly.
    """

    neurons: tuple[Neuron, ...]
    scores: tuple[float, ...]
    tokens: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, vlm: VisionLanguageModel, ranking: NeuronRanking) -> Ranked:
        """What a survey keeps of a ranking."""
        scores = tuple(record.score for record in ranking[:N_SCORED])
        return cls(ranking.neurons, scores, tuple(top_tokens(vlm, ranking.neurons[:N_SHOWN], N_TOKENS)))

    def to_dict(self) -> dict[str, Any]:
        """The ranking as plain JSON values, the neurons as one text: a survey has millions."""
        return {"neurons": " ".join(map(str, self.neurons)), "scores": self.scores, "tokens": self.tokens}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ranked:
        """The inverse of `to_dict`."""
        neurons = tuple(Neuron.parse(text) for text in values["neurons"].split())
        return cls(neurons, tuple(values["scores"]), tuple(map(tuple, values["tokens"])))


@dataclass(frozen=True)
class Concept:
    """A noun of one caption with the neurons of each method.

    Args:
        word: as the caption has it.
        index: which generated token it begins in.
        token_id: that token.
        rankings: by scorer, the best neurons.
    """

    word: str
    index: int
    token_id: int
    rankings: Mapping[str, Ranked]


@dataclass(frozen=True)
class Surveyed:
    """One picture of a survey.

    Args:
        number: of the picture in its set, from 0.
        label: what to call it.
        caption: the model's.
        concepts: the nouns of the caption; each once, where it is first said.
    """

    number: int
    label: str
    caption: str
    concepts: tuple[Concept, ...]

    def to_dict(self) -> dict[str, Any]:
        """The picture's part of the survey as plain JSON values."""
        concepts = [
            vars(c) | {"rankings": {name: ranked.to_dict() for name, ranked in c.rankings.items()}}
            for c in self.concepts
        ]
        return vars(self) | {"concepts": concepts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Surveyed:
        """The inverse of `to_dict`."""
        concepts = tuple(
            Concept(**{**c, "rankings": {name: Ranked.from_dict(r) for name, r in c["rankings"].items()}})
            for c in values["concepts"]
        )
        return cls(**{**values, "concepts": concepts})


def survey(
    vlm: VisionLanguageModel, pictures: Sequence[Pictured], *, methods: Sequence[str] = tuple(METHODS), k: int = 1000,
    prompt: str | Prompt | None = None, journal: Journal | None = None, processes: Processes = ALONE, seed: int = 0,
) -> Iterator[Surveyed]:  # fmt: skip
    """Caption pictures and rank neurons for every concept by every method.

    Args:
        vlm: the model.
        pictures: the picture set.
        methods: scorers; those of the paper by default.
        k: how many neurons to keep for each concept and method.
        prompt: as for `vlm.caption`.
        journal: what is done already, and where to write what comes.
        processes: of which this one does its share.
        seed: for the scorer `random`.

    Yields:
        The pictures of this process's share in their order.

    Raises:
        ImageError: if a picture cannot be read.
        ModelError: for `attribution` with a model that has no image positions.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> shown = [Pictured(picture) for picture, _, _ in benchmark_pictures(1)]
        >>> (found,) = survey(mmedit.load("iconworld-llava"), shown, methods=["contribution"], k=5)
        >>> [(concept.word, len(concept.rankings["contribution"].neurons)) for concept in found.concepts]
        [('lorry', 5), ('tree', 5), ('water', 5)]
    """
    done = {line["number"]: line for line in journal.lines()} if journal else {}
    for number, picture in processes.share(list(enumerate(pictures))):
        if number in done:
            yield Surveyed.from_dict(done[number])
            continue
        found = survey_one(vlm, picture, number, methods, k, prompt, seed)
        if journal:
            journal.write(found.to_dict())
        yield found


def survey_one(
    vlm: VisionLanguageModel, picture: Pictured, number: int, methods: Sequence[str], k: int, prompt: str | Prompt | None, seed: int
) -> Surveyed:  # fmt: skip
    """One picture; it is captioned once for all methods."""
    caption: list[Generation] = []

    def choose(_: int, generation: Generation) -> list[Occurrence]:
        caption.append(generation)
        return concepts_of(generation, vlm.tokenizer)

    scorers = {name: as_scorer(name, seed) for name in methods}
    wanted = [scorer.options(vlm.architecture) for scorer in scorers.values()]
    seen = sightings(vlm, picture.image, choose, prompt, at_prompt=any(o.get("at_prompt") for o in wanted))
    ranked = {name: rank(vlm, [[s] for s in seen], k, 0, scorer) if seen else [] for name, scorer in scorers.items()}
    concepts = tuple(
        Concept(
            s.occurrence.word, s.occurrence.index, s.occurrence.token_id,
            {name: Ranked.of(vlm, rankings[i]) for name, rankings in ranked.items()},
        )
        for i, s in enumerate(seen)
    )  # fmt: skip
    return Surveyed(number, picture.label or f"picture {number}", caption[0].text.strip(), concepts)


def concepts_of(generation: Generation, tokenizer: Any) -> list[Occurrence]:
    """The nouns of a caption, each once, where it is first said."""
    first: dict[str, Occurrence] = {}
    for noun in noun_tokens(generation.ids, tokenizer):
        word = noun.noun.text
        first.setdefault(
            word.casefold(), Occurrence(word, noun.noun.start, noun.index, generation.ids[noun.index], noun.n_tokens)
        )
    return list(first.values())
