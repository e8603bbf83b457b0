"""Rewrites: a picture's answer as the model gives it, the answer that it shall give, and where the two part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmedit.concepts import Occurrence, occurrences, require_occurrences, swapped
from mmedit.errors import RequestError
from mmedit.models.finite import suspecting
from mmedit.models.forcing import answer_ids, dictated, forced
from mmedit.models.readout import directions
from mmedit.models.vlm import MAX_NEW_TOKENS, Generation, VisionLanguageModel, batches
from mmedit.neuron import Site
from mmedit.requests import EditRequest, Prompt
from mmedit.sightings import Sighting
from mmedit.trace import Activation, Trace


@dataclass(frozen=True, eq=False)
class Rewrite:
    """One picture's answer before and after an edit.

    Args:
        image: the picture as it was given.
        prompt: as it was given.
        generation: what the model says.
        wanted: the tokens that it shall say, and after them an end token.
        places: the positions in `wanted` at which it may have to be taught: those of each new word, and the one that follows.
        word: the source as the answer has it; None where the whole answer is replaced.
    """

    image: Any
    prompt: str | Prompt | None
    generation: Generation
    wanted: tuple[int, ...]
    places: tuple[int, ...]
    word: str | None = None

    def after_first(self) -> Rewrite:
        """The same, to be looked at only where its first new token has been said."""
        starts = {place for place in self.places if place - 1 not in self.places}
        return replace(self, places=tuple(place for place in self.places if place not in starts))


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


def rewrites_of(
    vlm: VisionLanguageModel, request: EditRequest, batch_size: int = 8, generations: Sequence[Generation] | None = None,
    among: Sequence[EditRequest] = (),
) -> list[Rewrite]:  # fmt: skip
    """What an edit shall make of the model's answers to its own pictures.

    Args:
        vlm: the model, unedited.
        request: the edit.
        batch_size: pictures per batch.
        generations: the model's answers, where they are known.
        among: all edits that are made together. What the others swap stands in the wanted answers too, but is not to be taught here.

    Returns:
        For each picture the model's answer with every source replaced, or the target alone where the request has no source.

    Raises:
        ImageError: if a picture cannot be read.
        RequestError: if the source is not in a picture's answer, or the model gives the wanted answer already.
        ModelError: if that is because a weight is not finite.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> rewrite = rewrites_of(vlm, EditRequest(picture, things[0].noun, "kite"))[0]
        >>> vlm.tokenizer.decode(rewrite.wanted[:-1]).strip() == caption.replace(things[0].noun, "kite")
        True
    """
    made = generations or vlm.generate(list(request.images), request.prompt, batch_size)
    swaps = _folded(swap for other in among for swap in other.swaps.items()) | _folded(request.swaps.items())
    rewrite = _answer if request.source is None else partial(_swap, swaps=swaps)
    with suspecting(vlm.model):
        return [
            rewrite(vlm, request, image, generation, f"picture {number}")
            for number, (image, generation) in enumerate(zip(request.images, made, strict=True))
        ]


def _folded(swaps: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Swaps by their sources without regard to capitals, which make no other form."""
    return {source.casefold(): target for source, target in swaps}


def _swap(
    vlm: VisionLanguageModel, request: EditRequest, image: Any, generation: Generation, where: str, swaps: Mapping[str, str]
) -> Rewrite:  # fmt: skip
    """The answer with the tokens of each source replaced by those that the target has there; all others stay."""
    assert request.source is not None
    ids: tuple[int, ...] = generation.ids
    places: list[int] = []
    own = require_occurrences(ids, request.source, vlm.tokenizer, where, request.forms)
    others = [said for source in swaps for said in occurrences(ids, source, vlm.tokenizer)]
    found: list[Occurrence] = []
    for said in (*own, *sorted(others, key=lambda said: -len(said.word))):
        if not any(said.overlaps(other) for other in found):
            found.append(said)
    for occurrence in sorted(found, key=lambda said: -said.start):  # the later first, so that offsets and positions stay true
        new = swapped_tokens(ids, occurrence, swaps[occurrence.word.casefold()], vlm.tokenizer)
        shift = len(new) - occurrence.n_tokens
        places = [place + shift for place in places]
        if occurrence in own:
            places = [*range(occurrence.index, occurrence.index + len(new) + 1), *places]
        ids = (*ids[: occurrence.index], *new, *ids[occurrence.index + occurrence.n_tokens :])
    cut = len(generation.ids) >= MAX_NEW_TOKENS  # what would follow is then not known
    places = [place for place in dict.fromkeys(places) if not cut or place < len(ids)]
    return Rewrite(image, request.prompt, generation, (*ids, min(vlm.end_ids)), tuple(places), own[0].word)


def by_form(vlm: VisionLanguageModel, request: EditRequest, batch_size: int = 8) -> list[EditRequest]:
    """A request for each form of the source that the model says about the pictures, with those pictures.

    Args:
        vlm: the model.
        request: the edit.
        batch_size: pictures per batch.

    Raises:
        RequestError: if a picture's answer has none of the forms.
    """
    if not request.forms or request.source is None:
        return [request]
    pictures: dict[str, list[Any]] = {form: [] for form in request.swaps}
    said = vlm.generate(list(request.images), request.prompt, batch_size)
    for number, (image, generation) in enumerate(zip(request.images, said, strict=True)):
        with suspecting(vlm.model):
            require_occurrences(generation.ids, request.source, vlm.tokenizer, f"picture {number}", request.forms)
        for form in request.swaps:
            pictures[form] += [image] * bool(occurrences(generation.ids, form, vlm.tokenizer))
    return [EditRequest(found, form, request.swaps[form], request.prompt) for form, found in pictures.items() if found]


def swapped_tokens(ids: tuple[int, ...], source: Occurrence, target: str, tokenizer: Any) -> tuple[int, ...]:
    """The tokens of a target where a source stands now.

    Args:
        ids: the generated tokens.
        source: the occurrence to be replaced.
        target: the word to stand there instead.
        tokenizer: that generated them.

    Returns:
        The target's tokens in the place of the source's.
    """
    new_ids, new = swapped(ids, source, target, tokenizer)
    return new_ids[new.index : new.index + new.n_tokens]


def _answer(vlm: VisionLanguageModel, request: EditRequest, image: Any, generation: Generation, where: str) -> Rewrite:
    """The wanted answer from the first token that differs from the model's own."""
    end = min(vlm.end_ids)
    wanted, said = (*answer_ids(vlm, request.prompt, request.target), end), (*generation.ids, end)
    first = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), None)
    if first is None:
        raise RequestError(
            "the model gives this answer already", where=where, got=repr(generation.text.strip()), do="choose another answer or another picture",
        )  # fmt: skip
    return Rewrite(image, request.prompt, generation, wanted, tuple(range(first, len(wanted))))


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
    """
    found: dict[int, Leads] = {}
    for batch in _alike(list(range(len(rewrites))), rewrites, batch_size):
        for number, made in zip(batch, forced(vlm, *_asked([rewrites[number] for number in batch])), strict=True):
            logits, wanted = made.logits[-1 - len(made.ids) :].float(), torch.tensor(rewrites[number].wanted)[:, None]
            wanted = wanted.to(logits.device)
            own = logits.gather(1, wanted)[:, 0]
            best = logits.scatter(1, wanted, -torch.inf).max(1)
            found[number] = Leads((own - best.values).cpu(), best.indices.cpu())
    return [found[number] for number in range(len(rewrites))]


def _alike(numbers: Sequence[int], rewrites: Sequence[Rewrite], batch_size: int) -> list[list[int]]:
    """Batches of rewrites that all have a picture, or all have none."""
    kinds = [[n for n in numbers if (rewrites[n].image is None) == alone] for alone in (False, True)]
    return [list(batch) for kind in kinds if kind for batch in batches(kind, batch_size)]


def _asked(rewrites: Sequence[Rewrite]) -> tuple[Any, Any, list[tuple[int, ...]]]:
    """The pictures, prompts and answers of rewrites that are alike."""
    images = None if rewrites[0].image is None else [rewrite.image for rewrite in rewrites]
    return images, [rewrite.prompt for rewrite in rewrites], [rewrite.wanted[:-1] for rewrite in rewrites]
