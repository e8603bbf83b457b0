"""Steps: what a model would say at the places of wanted answers, how it comes to it, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmedit.concepts import Occurrence
from mmedit.models.finite import not_finite
from mmedit.models.forcing import dictated, forced
from mmedit.models.readout import directions
from mmedit.models.vlm import Generation, VisionLanguageModel, batches
from mmedit.neuron import Site
from mmedit.rewrites import Rewrite
from mmedit.sightings import Sighting
from mmedit.trace import Activation, Trace


@dataclass(frozen=True)
class Step:
    """One token of a wanted answer, where the model would say it.

    Args:
        rewrite: the answer.
        place: the position of the token in it.
        wanted: the token.
        logits: what the model predicts there, after the wanted tokens before it `[n_vocab]`.
        activations: for each site `o` `[d_ffn]`.
        norms: what entered each norm there, `[d_model]`; the way from W_out to the logit is worked out from it.
        at_prompt: for each site `o` at the prompt's last token `[d_ffn]`; empty unless asked for.
    """

    rewrite: Rewrite
    place: int
    wanted: int
    logits: Tensor = field(repr=False)
    activations: dict[Site, Tensor] = field(repr=False)
    norms: dict[Any, Tensor] = field(repr=False)
    at_prompt: dict[Site, Tensor] = field(default_factory=dict, repr=False)

    @property
    def rival(self) -> int:
        """The token that the model prefers to all others but the wanted one."""
        others = self.logits.clone()
        others[self.wanted] = -torch.inf
        return int(others.argmax())

    @property
    def margin(self) -> float:
        """By how much the wanted token's logit is above the best other one's; below 0 where the model says something else."""
        return float(self.logits[self.wanted] - self.logits[self.rival])

    def sighting(self, vlm: VisionLanguageModel, picture: int, folded: bool = False) -> Sighting:
        """The rival as a word that the model says here, for scorers.

        Args:
            vlm: the model.
            picture: which picture, from 0.
            folded: whether scores shall follow the neurons' writings to the logit.
        """
        text = vlm.tokenizer.decode(self.rewrite.wanted[: self.place], skip_special_tokens=True)
        occurrence = Occurrence(vlm.tokenizer.decode([self.rival]).strip(), len(text), self.place, self.rival, 1)
        ways = directions(vlm.architecture, self.rival, self.norms.__getitem__, self.activations) if folded else {}
        given = Generation(
            vlm.tokenizer.decode(self.rewrite.wanted[:-1], skip_special_tokens=True), self.rewrite.wanted[:-1]
        )
        image, prompt = self.rewrite.image, self.rewrite.prompt
        return Sighting(picture, given, occurrence, self.activations, ways, self.at_prompt, image, prompt)

    def direction(self, vlm: VisionLanguageModel, rival: int | None = None) -> dict[Site, Tensor]:
        """For each site the direction in which a vector that it writes raises that margin `[d_model]`.

        Args:
            vlm: the model.
            rival: the token to be overtaken; the best other one when None.
        """
        found = []
        for token in (self.wanted, self.rival if rival is None else rival):
            found.append(directions(vlm.architecture, token, self.norms.__getitem__, self.activations))
        return {site: found[0][site] - found[1][site].to(found[0][site].device) for site in self.activations}


def steps_of(
    vlm: VisionLanguageModel, rewrites: Sequence[Rewrite], *, layers: Sequence[int] | None = None, activation: Activation = "w_out_input",
    batch_size: int = 8, at_prompt: bool = False,
) -> list[list[Step]]:  # fmt: skip
    """What the model would say at each place of wanted answers, and the activations there.

    Args:
        vlm: the model, as it is now.
        rewrites: the answers; their tokens are given one by one.
        layers: decoder layers to look at; all when None.
        activation: as for `Trace`.
        batch_size: pictures per batch.
        at_prompt: also keep the activations at the prompt's last token.

    Returns:
        For each rewrite the steps at its places, in order.

    Raises:
        RequestError: if a layer does not exist.
    """
    sites = vlm.architecture.sites_of(None if layers is None else list(layers))
    found: list[list[Step]] = [[] for _ in rewrites]
    with Trace(vlm.architecture, sites, activation, norms=True) as trace:
        for batch in _alike(
            [number for number, rewrite in enumerate(rewrites) if rewrite.places], rewrites, batch_size
        ):
            made = dictated(vlm, *_asked([rewrites[number] for number in batch]))
            for row, (number, answer) in enumerate(zip(batch, made, strict=True)):
                for place in rewrites[number].places:
                    entered = partial(trace.entered, step=place, row=row)
                    activations = {site: trace.at(site, place, row) for site in sites}
                    norms = {norm: entered(norm).clone() for norm in trace.norms}
                    first = {site: trace.at(site, 0, row) for site in sites} if at_prompt else {}
                    wanted, logits = rewrites[number].wanted[place], answer.logits[place].float()
                    found[number].append(Step(rewrites[number], place, wanted, logits, activations, norms, first))
            trace.clear()
    return found


@dataclass(frozen=True)
class Leads:
    """By how much each token of an answer leads over all others, where the model predicts it.

    Args:
        margins: its logit less the best other one, for each token and the end `[n]`; below 0 where it would not be said.
        rivals: the best other tokens `[n]`.
    """

    margins: Tensor
    rivals: Tensor


def leads_of(vlm: VisionLanguageModel, rewrites: Sequence[Rewrite], batch_size: int = 8) -> list[Leads]:
    """How surely a model says wanted answers, in one forward pass for each batch.

    Args:
        vlm: the model, as it is now.
        rewrites: the answers.
        batch_size: answers per batch.

    Returns:
        The leads of the tokens of each.

    Raises:
        ModelError: if the model computes NaN or infinity.
    """
    found: dict[int, Leads] = {}
    for batch in _alike(list(range(len(rewrites))), rewrites, batch_size):
        for number, made in zip(batch, forced(vlm, *_asked([rewrites[number] for number in batch])), strict=True):
            logits, wanted = made.logits[-1 - len(made.ids) :].float(), torch.tensor(rewrites[number].wanted)[:, None]
            wanted = wanted.to(logits.device)
            own = logits.gather(1, wanted)[:, 0]
            best = logits.scatter(1, wanted, -torch.inf).max(1)
            found[number] = Leads((own - best.values).cpu(), best.indices.cpu())
            if not bool(found[number].margins.isfinite().all()):  # NaN is below nothing, and would pass for a lead
                raise not_finite(vlm.model)
    return [found[number] for number in range(len(rewrites))]


def _alike(numbers: Sequence[int], rewrites: Sequence[Rewrite], batch_size: int) -> list[list[int]]:
    """Batches of rewrites that all have a picture, or all have none."""
    kinds = [[n for n in numbers if (rewrites[n].image is None) == alone] for alone in (False, True)]
    return [list(batch) for kind in kinds if kind for batch in batches(kind, batch_size)]


def _asked(rewrites: Sequence[Rewrite]) -> tuple[Any, Any, list[tuple[int, ...]]]:
    """The pictures, prompts and answers of rewrites that are alike."""
    images = None if rewrites[0].image is None else [rewrite.image for rewrite in rewrites]
    return images, [rewrite.prompt for rewrite in rewrites], [rewrite.wanted[:-1] for rewrite in rewrites]
