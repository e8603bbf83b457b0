"""Sightings: a word in a generated caption, with the activations where its first token was predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import Tensor

from mmedit.concepts import Occurrence, require_occurrences
from mmedit.errors import RequestError
from mmedit.models.finite import bad_weight, not_finite, suspecting
from mmedit.models.forcing import answer_ids
from mmedit.models.readout import directions
from mmedit.models.vlm import Generation, VisionLanguageModel, batches
from mmedit.neuron import Site
from mmedit.requests import Prompt
from mmedit.trace import Activation, Trace

FinalNorm = Literal["ignore", "fold"]
Choose = Callable[[int, Generation], list[Occurrence]]


@dataclass(frozen=True)
class Sighting:
    """A word in one picture's caption, with the activations where its first token was predicted.

    Args:
        picture: which picture, from 0.
        generation: its caption.
        occurrence: the word in it.
        activations: for each site, `o` `[d_ffn]`.
        directions: for each site the direction in which it writes the word's token there, to the logit `[d_model]`; empty: W_U's
            column for all, as in the paper.
        at_prompt: for each site, `o` at the prompt's last token `[d_ffn]`, shared by the words of a caption; empty unless asked for.
        image: the picture as it was given; None for a text-only prompt.
        prompt: as it was given.
    """

    picture: int
    generation: Generation
    occurrence: Occurrence
    activations: dict[Site, Tensor] = field(repr=False)
    directions: dict[Site, Tensor] = field(default_factory=dict, repr=False)
    at_prompt: dict[Site, Tensor] = field(default_factory=dict, repr=False)
    image: Any = None
    prompt: str | Prompt | None = None


def sightings(
    vlm: VisionLanguageModel, images: Any, choose: Choose, prompt: str | Prompt | None = None, *, activation: Activation = "w_out_input",
    final_norm: FinalNorm = "ignore", layers: Sequence[int] | None = None, batch_size: int = 8, at_prompt: bool = False,
) -> list[Sighting]:  # fmt: skip
    """Caption pictures and keep the activations at the chosen words.

    Args:
        vlm: the model.
        images: one picture or several.
        choose: from a picture's number and caption to the words of interest in it.
        prompt: as for `vlm.caption`.
        activation: `w_out_input`, or `act_fn` for what the authors' code records (without the up factor).
        final_norm: `fold` also follows what each site writes through norms, scales and a softcap to the logit, with the
            norms' scales held where they were.
        layers: decoder layers to look at; all when None.
        batch_size: pictures per batch.
        at_prompt: also keep the activations at the prompt's last token.

    Returns:
        The sightings in order of pictures.

    Raises:
        RequestError: if a layer does not exist, an option is unknown, or `choose` says so.
        ModelError: for `fold`, if the model has no norm before the unembedding; if NaN or infinity is why a caption has no words.
    """
    if final_norm not in ("ignore", "fold") or activation not in ("w_out_input", "act_fn"):
        raise RequestError(
            "no such option",
            got=f"activation={activation!r}, final_norm={final_norm!r}",
            expected="w_out_input or act_fn; ignore or fold",
        )
    sites, kept, done = vlm.architecture.sites_of(None if layers is None else list(layers)), [], 0
    with Trace(vlm.architecture, sites, activation, norms=final_norm == "fold") as trace:
        for batch in batches(images, batch_size):
            generations = vlm.generate_batch(vlm.inputs(batch, prompt))
            for row, generation in enumerate(generations):
                try:
                    with suspecting(vlm.model):
                        words = choose(done + row, generation)
                except RequestError:
                    _require_finite(vlm, trace, row, generation)
                    raise
                if not words:
                    _require_finite(vlm, trace, row, generation)
                first = {site: trace.at(site, 0, row) for site in sites} if at_prompt and words else {}
                for occurrence in words:
                    step = occurrence.index
                    inputs, token = partial(trace.entered, step=step, row=row), occurrence.token_id
                    ways = directions(vlm.architecture, token, inputs, sites) if final_norm == "fold" else {}
                    activations = {site: trace.at(site, step, row) for site in sites}
                    image = None if batch is None else batch[row]
                    kept.append(Sighting(done + row, generation, occurrence, activations, ways, first, image, prompt))
            done += len(generations)
            trace.clear()
    return kept


def _require_finite(vlm: VisionLanguageModel, trace: Trace, row: int, generation: Generation) -> None:
    """Raise ModelError if a picture's caption lacks words because there was NaN or infinity on the way to it."""
    steps = range(trace.n_steps)
    overflow = next(
        (s for s in trace.sites for step in steps if not bool(trace.at(s, step, row).isfinite().all())), None
    )
    silent = not generation.text.strip() and bad_weight(vlm.model) is not None
    if overflow is not None or silent or not bool(vlm.architecture.w_u.isfinite().all()):
        raise not_finite(vlm.model, overflow)


def source_sightings(
    vlm: VisionLanguageModel, images: Any, source: str, prompt: str | Prompt | None = None, **options: Any
) -> list[Sighting]:
    """The sightings of a source that each caption must have; arguments and errors as for `locate_word`."""

    def choose(picture: int, generation: Generation) -> list[Occurrence]:
        return require_occurrences(generation.ids, source, vlm.tokenizer, where=f"picture {picture}")

    return sightings(vlm, images, choose, prompt, **options)


def answer_sightings(
    vlm: VisionLanguageModel, images: Any, answer: str, prompt: str | Prompt | None = None, **options: Any
) -> tuple[list[Sighting], int]:
    """Where the model's answers first differ from the one that they shall be.

    Args:
        vlm: the model.
        images: one picture or several.
        answer: the whole answer that is wanted.
        prompt: the question.
        options: as for `sightings`.

    Returns:
        A sighting of each picture at the first token that differs, and the token that shall stand there; the end of an
        answer counts as a token.

    Raises:
        RequestError: if the model gives that answer already, or the pictures' answers differ from it at other tokens.
    """
    end = min(vlm.end_ids)
    wanted = (*answer_ids(vlm, prompt, answer), end)

    def choose(picture: int, generation: Generation) -> list[Occurrence]:
        said = (*generation.ids, end)
        index = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), None)
        if index is None:
            raise RequestError(
                "the model gives this answer already", where=f"picture {picture}", got=repr(generation.text.strip()),
                do="choose another answer or another picture",
            )  # fmt: skip
        before = vlm.tokenizer.decode(list(said[:index]), skip_special_tokens=True)
        return [Occurrence(generation.text.strip(), len(before), index, said[index], 1)]

    seen = sightings(vlm, images, choose, prompt, **options)
    swaps = {(s.occurrence.token_id, wanted[s.occurrence.index]) for s in seen}
    if len(swaps) > 1:
        raise RequestError(
            "the pictures' answers differ from the wanted one at different tokens",
            got=[vlm.tokenizer.decode(list(pair)) for pair in sorted(swaps)],
            do="edit them one by one, or name a source and a target word",
        )
    return seen, swaps.pop()[1]
