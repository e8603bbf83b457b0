"""Noise (Pan et al., ACL Findings 2024, section 3.3): Gaussian noise on the located neurons' rows, the control of every edit.

    Δw ~ N(0, σ²I)   for each of the best neurons.

It unsays the source, if the neurons cause it, but has no target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmedit.editors.base import Editor, Requests, apply_to_model, make_patch, requests_of, source_of
from mmedit.editors.ranges import check, check_ranges
from mmedit.locate import rank
from mmedit.models.images import image_digest
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron, NeuronRanking
from mmedit.patches.patch import Patch
from mmedit.requests import EditRequest, as_prompt
from mmedit.rewrites import by_form
from mmedit.scorers import SCORERS, as_scorer
from mmedit.sightings import answer_sightings, source_sightings

SIGMA = 0.5  # of the paper
N_NEURONS = 5


@dataclass(frozen=True)
class NoiseHparams:
    """Hyperparameters of the paper's perturbation; the defaults are the paper's."""

    neurons_per_edit: int = N_NEURONS
    """How many neurons to disturb, the best by the scorer."""
    sigma: float = SIGMA
    """Standard deviation of the noise, in units of the weights."""
    scorer: str = "contribution"
    """What neurons are chosen by, as for `MMNeurons`."""
    seed: int = 0
    """Of the noise, and of random neurons; the n-th of several requests has the n-th seed after it."""
    batch_size: int = 8
    """Pictures per batch while locating."""

    def __post_init__(self) -> None:
        check_ranges(self, {"neurons_per_edit": 1, "sigma": 0, "seed": 0, "batch_size": 1}, {})
        check(self, "scorer", self.scorer in SCORERS, " or ".join(SCORERS))


def noise(vlm: VisionLanguageModel, neurons: Sequence[Neuron], sigma: float, seed: int) -> Patch:
    """A patch that adds Gaussian noise of mean 0 to the rows of some neurons.

    Args:
        vlm: the model; not touched.
        neurons: which, each once.
        sigma: the standard deviation, in units of the weights.
        seed: of the noise.
    """
    editor = Noise(NoiseHparams(neurons_per_edit=len(neurons), sigma=sigma, seed=seed))
    return make_patch(vlm, editor, sorted(neurons), _rows(vlm, len(neurons), sigma, seed), ())


def _rows(vlm: VisionLanguageModel, n: int, sigma: float, seed: int) -> Tensor:
    """Noise for n neurons, in their order in the model."""
    return torch.randn(n, vlm.architecture.d_model, generator=torch.Generator().manual_seed(seed)) * sigma


class Noise(Editor):
    """Locate multi-modal neurons and disturb the best; of several requests each by itself.

    Args:
        hparams: `NoiseHparams`; the paper's values when None.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> editor, request = mmedit.editors.Noise(), mmedit.EditRequest(picture, things[0].noun, "kite")
        >>> patch = editor.execute(vlm, request)
        >>> patch.digest == noise(vlm, patch.neurons, sigma=0.5, seed=0).digest
        True
    """

    name = "Noise"
    Hparams = NoiseHparams
    hparams: NoiseHparams

    def locate(self, vlm: VisionLanguageModel, request: EditRequest) -> NeuronRanking:
        """Rank the neurons that write the request's source over all its pictures, best first, by the scorer.

        Raises:
            RequestError: if the source is not in a picture's caption; it shows the caption and its nouns.
        """
        return self._located(vlm, request, 100)

    def execute(self, vlm: VisionLanguageModel, request: Requests) -> Patch:
        """Draw the noise; the model is not touched.

        Args:
            vlm: the model.
            request: the edit, or several; where they have a neuron in common, it has the noise of each.

        Returns:
            The patch, not yet live.

        Raises:
            RequestError: if the model does not say a source.
            ModelError: if a weight cannot be edited in place.
        """
        hp, edits, rows = self.hparams, list[dict[str, Any]](), dict[Neuron, Tensor]()
        parts = [part for whole in requests_of(request) for part in by_form(vlm, whole, hp.batch_size)]
        for number, one in enumerate(parts):
            ranking = self._located(vlm, one, hp.neurons_per_edit)
            drawn = _rows(vlm, len(ranking.neurons), hp.sigma, hp.seed + number)
            for neuron, row in zip(sorted(ranking.neurons), drawn, strict=True):
                rows[neuron] = rows[neuron] + row if neuron in rows else row
            edits.append({
                "source": source_of(one, ranking.source), "target": one.target, "prompt": asdict(as_prompt(one.prompt)),
                "images": [image_digest(image) for image in one.images], "neurons": [str(neuron) for neuron in ranking.neurons],
            })  # fmt: skip
        return make_patch(vlm, self, [*rows], torch.stack([*rows.values()]), edits)

    def _located(self, vlm: VisionLanguageModel, request: EditRequest, k: int) -> NeuronRanking:
        scorer = as_scorer(self.hparams.scorer, self.hparams.seed)
        options = scorer.options(vlm.architecture, batch_size=self.hparams.batch_size)
        if request.source is None:
            seen, _ = answer_sightings(vlm, request.images, request.target, request.prompt, **options)
        else:
            seen = source_sightings(vlm, request.images, request.source, request.prompt, **options)
        return rank(vlm, [seen], k, scorer=scorer)[0]


def apply_noise_to_model(
    model: Any, tok_or_processor: Any, requests: Any, hparams: Any, copy: bool = False, return_orig_weights: bool = False,
    keep_original_weight: bool = False, **kw: Any,
) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
    """ROME's function face of `Noise`; arguments, results and errors as for `mmedit.editors.base.apply_to_model`."""
    return apply_to_model(
        Noise, model, tok_or_processor, requests, hparams, copy, return_orig_weights, keep_original_weight
    )
