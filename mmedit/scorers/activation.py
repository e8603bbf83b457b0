"""Base of Pan et al., section 3: the highest activations at the last token of the prompt, whatever the word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Site
from mmedit.scorers.base import Scorer
from mmedit.sightings import Sighting


class Activation(Scorer):
    """How active each neuron is at the prompt's last token, the position that predicts the first token of the answer.

    All words of a caption have the same scores: this is the baseline that knows nothing of the word.
    """

    name = "activation"
    at_prompt = True

    def scores(self, vlm: VisionLanguageModel, seen: Sequence[Sighting]) -> dict[Site, Tensor]:
        return {site: torch.stack([s.at_prompt[site] for s in seen]).float().cpu() for site in seen[0].activations}
