"""What every scorer offers: a score of each neuron for each word that the model said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from mmedit.errors import RequestError
from mmedit.models.architecture import Architecture
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Site
from mmedit.sightings import Sighting


class Scorer(ABC):
    """A way to score neurons for a word; the greatest score ranks first.

    A scorer of one's own is a subclass with a name and `scores`; `mmedit.locate_word(…, scorer=Mine())` ranks by it.

    Example:
        >>> class Loudness(Scorer):
        ...     name = "loudness"
        ...     def scores(self, vlm, seen):
        ...         return {site: torch.stack([s.activations[site] for s in seen]).abs() for site in seen[0].activations}
        >>> import torch, mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, _, things = list(benchmark_pictures(2))[1]
        >>> mmedit.locate_word(mmedit.load("iconworld-llava"), picture, things[0].noun, scorer=Loudness()).scorer
        'loudness'
    """

    name: ClassVar[str]
    at_prompt: ClassVar[bool] = False
    """Whether it reads the activations at the prompt's last token."""
    folds: ClassVar[bool] = False
    """Whether it can take the final norm into account."""

    @abstractmethod
    def scores(self, vlm: VisionLanguageModel, seen: Sequence[Sighting]) -> dict[Site, Tensor]:
        """Score the neurons of every site that was looked at.

        Args:
            vlm: the model, as it was when it said the words.
            seen: at least one sighting, all of the same sites.

        Returns:
            For each site the scores for each sighting, `[n_sightings, d_ffn]` in float32 on the CPU.
        """

    def options(self, architecture: Architecture, **options: Any) -> dict[str, Any]:
        """The options of `sightings` for this scorer.

        Args:
            architecture: of the model.
            options: those that the user chose.

        Raises:
            RequestError: if one of them means nothing to this scorer.
            ModelError: if the model has not what this scorer looks at.
        """
        if options.get("final_norm") == "fold" and not self.folds:
            raise RequestError(
                "final_norm='fold' is for contribution scores", got=f"scorer {self.name!r}", do="leave final_norm out"
            )
        return options | {"at_prompt": self.at_prompt}

    def label(self, architecture: Architecture, sighting: Sighting) -> str:
        """What a ranking by this scorer says about where its scores come from."""
        return self.name
