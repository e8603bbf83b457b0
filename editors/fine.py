"""FiNE (Pan et al., ICLR 2025, arXiv 2503.01090): a few neurons for each token of the answer, their rows learnt by gradient descent.

For each token that shall be said, the neurons are those that contribute most to the token which the model says there now,
o · (W_out[i] · W_U[:, y]), but none of the last layers. What is added to their rows, δ, minimises

    max −log p(wanted)  +  α · KL(edited ‖ unedited)  +  β · max −log(1 − p(target again))  +  γ · ‖δ‖,

with KL over what the model predicts before the first new word, and the third term where the word has been said. The paper
edits language models; here the answer is what a model says about a picture, and the mean is taken over pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmedit.editors.base import Editor, Requests, apply_to_model, make_patch, requests_of
from mmedit.editors.patching import modules_of, provenance
from mmedit.editors.ranges import check, check_ranges
from mmedit.editors.teaching import Lesson, added, at, descend, divergence, lessons_of, logits_of, zeros
from mmedit.locate import rank
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron, NeuronRanking, Site
from mmedit.patches.patch import Patch
from mmedit.requests import EditRequest
from mmedit.rewrites import Rewrite, rewrites_of
from mmedit.sightings import Sighting
from mmedit.steps import steps_of


@dataclass(frozen=True)
class FiNEHparams:
    """Hyperparameters of FiNE, under the names of its code; the defaults are the paper's for LLaMA-2."""

    neuron_num: int = 5
    """How many neurons for each token to be said."""
    last_layer: int = 3
    """How many of the last layers are left alone."""
    epochs: int = 50
    """Steps of Adam, at most."""
    lr: float = 5e-3
    """Its step size."""
    alpha: float = 1.0
    """α, weight of KL."""
    beta: float = 10.0
    """β, weight of the penalty on saying the target once more."""
    gamma: float = 0.1
    """γ, weight of ‖δ‖."""
    early_stop_prob: float = 0.9
    """It ends when every wanted token is this probable."""
    batch_size: int = 8
    """Pictures per batch; all of them are one step."""

    def __post_init__(self) -> None:
        least = {"neuron_num": 1, "last_layer": 0, "epochs": 1, "alpha": 0, "beta": 0, "gamma": 0, "batch_size": 1}
        check_ranges(self, least, {"lr": 0, "early_stop_prob": 0})
        check(self, "early_stop_prob", self.early_stop_prob < 1, "below 1")


class FiNE(Editor):
    """Locate neurons for each token of the wanted answers, and learn what to add to their rows, for all requests together.

    Args:
        hparams: `FiNEHparams`; the paper's values when None.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> editor, request = mmedit.editors.FiNE.from_hparams("iconworld-llava"), mmedit.EditRequest(picture, things[0].noun, "kite")
        >>> set(editor.locate(vlm, request).neurons) <= set(editor.execute(vlm, request).neurons)
        True
    """

    name = "FiNE"
    Hparams = FiNEHparams
    hparams: FiNEHparams

    def locate(self, vlm: VisionLanguageModel, request: EditRequest) -> NeuronRanking:
        """The neurons of the first token to be said.

        Raises:
            RequestError: if the model does not say the source; it shows the caption and its nouns.
        """
        return self._located(vlm, rewrites_of(vlm, request, self.hparams.batch_size))[0]

    @torch.inference_mode(False)
    def execute(self, vlm: VisionLanguageModel, request: Requests) -> Patch:
        """Work out δ; the model is the same at the end as at the start.

        Args:
            vlm: the model.
            request: the edit, or several that are learnt together.

        Returns:
            The patch, not yet live, of the located neurons' rows.

        Raises:
            RequestError: if the model does not say a source, or has no more than the layers that are left alone.
            ModelError: if a layer is a fused mixture of experts, or a weight cannot be edited in place.
        """
        hp, edits, all_rewrites, chosen = self.hparams, [], list[Rewrite](), dict[Neuron, None]()
        requests = requests_of(request)
        for one in requests:
            rewrites = rewrites_of(vlm, one, hp.batch_size, among=requests)
            rankings = self._located(vlm, rewrites)
            chosen |= dict.fromkeys(neuron for ranking in rankings for neuron in ranking.neurons)
            all_rewrites += rewrites
            located = [[str(neuron) for neuron in ranking.neurons] for ranking in rankings]
            edits.append(provenance(vlm, one, rewrites, located=located))
        sites: dict[Site, list[int]] = {}
        for neuron in sorted(chosen):
            sites.setdefault(neuron.site, []).append(neuron.unit)
        rows = {site: zeros(vlm.architecture.w_out(site), len(units)) for site, units in sites.items()}
        changes = {site: (torch.tensor(units), rows[site]) for site, units in sites.items()}
        self._learn(vlm, lessons_of(vlm, all_rewrites, hp.batch_size), changes)
        delta = torch.cat([learnt.detach().cpu() for learnt in rows.values()])
        return make_patch(vlm, self, sorted(chosen), delta, edits)

    def _located(self, vlm: VisionLanguageModel, rewrites: list[Rewrite]) -> list[NeuronRanking]:
        """For each token to be said the neurons of what is said there now, over all pictures in which it is the same."""
        layers = list(range(vlm.architecture.n_layers - self.hparams.last_layer))
        modules_of(vlm.architecture, layers)
        found: dict[tuple[int, int], list[Sighting]] = {}
        for picture, steps in enumerate(steps_of(vlm, rewrites, layers=layers, batch_size=self.hparams.batch_size)):
            for step in steps:
                if step.place in targets(step.rewrite.places):
                    said, seen = int(step.logits.argmax()), step.sighting(vlm, picture)
                    word = replace(seen.occurrence, token_id=said, word=vlm.tokenizer.decode([said]).strip())
                    found.setdefault((said, step.wanted), []).append(replace(seen, occurrence=word))
        return rank(vlm, [*found.values()], self.hparams.neuron_num)

    def _learn(
        self, vlm: VisionLanguageModel, lessons: list[Lesson], changes: dict[Site, tuple[Tensor, Tensor]]
    ) -> None:
        """Descend on the loss above, in place."""
        hp, before, deltas = self.hparams, dict[Lesson, Tensor](), [rows for _, rows in changes.values()]

        def objective(lesson: Lesson) -> tuple[Tensor, bool]:
            with added(vlm.architecture, changes):
                logits = logits_of(vlm, lesson)
            loss, now = lesson.loss(logits), at(logits, lesson.prefix)
            kl = divergence(now, before.setdefault(lesson, now.detach()))  # δ is 0 at first
            size = torch.cat([rows.flatten().to(logits.device) for rows in deltas]).norm()
            total = lesson.worst(loss).mean() + hp.alpha * kl + hp.beta * repetition(lesson, logits) + hp.gamma * size
            return lesson.share * total, bool(loss.max() < -math.log(hp.early_stop_prob))

        descend(vlm, deltas, objective, lessons, hp.lr, hp.epochs)


def targets(places: tuple[int, ...]) -> list[int]:
    """Of the places of new words, and of what follows each, those of the words.

    Example:
        >>> targets((3, 4, 5, 9, 10)), targets((2,))
        ([3, 4, 9], [2])
    """
    return [place for place in places if place + 1 in places] or list(places)


def repetition(lesson: Lesson, logits: Tensor) -> Tensor:
    """The greatest −log(1 − p) of a new word's tokens where it has just been said, the mean over answers."""
    runs: list[list[int]] = []
    for i, place in enumerate(lesson.taught.tolist()):
        if i and [place[0], place[1] - 1] == lesson.taught[i - 1].tolist():
            runs[-1].append(i)
        else:
            runs.append([i])
    worst = [logits.new_zeros((), dtype=torch.float32) for _ in range(lesson.n_answers)]
    for *word, after in runs:
        p = logits[tuple(lesson.taught[after].tolist())].float().softmax(-1)
        again = [token for token in lesson.wanted[word].tolist() if token != int(lesson.wanted[after])]
        if again:
            row = int(lesson.taught[after, 0])
            worst[row] = torch.maximum(worst[row], -torch.log1p(-p[again].max().clamp_max(1 - 1e-6)))
    return torch.stack(worst).mean()


def apply_fine_to_model(
    model: Any, tok_or_processor: Any, requests: Any, hparams: Any, copy: bool = False, return_orig_weights: bool = False,
    keep_original_weight: bool = False, **kw: Any,
) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
    """ROME's function face of `FiNE`; arguments, results and errors as for `mmedit.editors.base.apply_to_model`."""
    return apply_to_model(
        FiNE, model, tok_or_processor, requests, hparams, copy, return_orig_weights, keep_original_weight
    )
