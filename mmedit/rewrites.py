"""Rewrites: a picture's answer as the model gives it, and the answer that it shall give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mmedit.concepts import Occurrence, occurrences, require_occurrences, swapped
from mmedit.errors import RequestError
from mmedit.models.finite import suspecting
from mmedit.models.forcing import answer_ids
from mmedit.models.vlm import MAX_NEW_TOKENS, Generation, VisionLanguageModel
from mmedit.requests import EditRequest, Prompt


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
    for occurrence in sorted(
        found, key=lambda said: -said.start
    ):  # the later first, so that offsets and positions stay true
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
