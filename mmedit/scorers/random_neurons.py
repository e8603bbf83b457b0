"""Random neurons, the control of every comparison of scorers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmedit.models.architecture import Architecture
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Site
from mmedit.scorers.base import Scorer
from mmedit.sightings import Sighting


@dataclass(frozen=True)
class RandomNeurons(Scorer):
    """Scores drawn evenly from 0 to 1, so that every neuron is equally likely to be among the best.

    The draw depends on the seed, the word's token and the site alone: a word has the same neurons in every picture, other
    words have others, and looking at fewer layers changes no score.

    Args:
        seed: of the draw.
    """

    seed: int = 0
    name = "random"

    def scores(self, vlm: VisionLanguageModel, seen: Sequence[Sighting]) -> dict[Site, Tensor]:
        tokens = [s.occurrence.token_id for s in seen]
        return {
            site: torch.stack([self._draw(token, site, len(o)) for token in tokens])
            for site, o in seen[0].activations.items()
        }

    def label(self, architecture: Architecture, sighting: Sighting) -> str:
        return f"{self.name}, seed {self.seed}"

    def _draw(self, token: int, site: Site, n: int) -> Tensor:
        seed = random.Random(f"{self.seed} {token} {site}").getrandbits(63)
        return torch.rand(n, generator=torch.Generator().manual_seed(seed))
