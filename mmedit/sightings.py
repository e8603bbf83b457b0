"""Sightings: a word in a generated caption, with the activations where its first token was predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mmedit.concepts import Occurrence, require_occurrences
from mmedit.errors import ModelError, RequestError
from mmedit.models.architecture import Architecture
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
        gain: how much a unit of the residual stream moves the input of W_U there `[d_model]`; None: ignored, as in the paper.
    """

    picture: int
    generation: Generation
    occurrence: Occurrence
    activations: dict[Site, Tensor] = field(repr=False)
    gain: Tensor | None = field(default=None, repr=False)


def sightings(
    vlm: VisionLanguageModel, images: Any, choose: Choose, prompt: str | Prompt | None = None, *, activation: Activation = "w_out_input",
    final_norm: FinalNorm = "ignore", layers: Sequence[int] | None = None, batch_size: int = 8,
) -> list[Sighting]:  # fmt: skip
    """Caption pictures and keep the activations at the chosen words.

    Args:
        vlm: the model.
        images: one picture or several.
        choose: from a picture's number and caption to the words of interest in it.
        prompt: as for `vlm.caption`.
        activation: `w_out_input`, or `act_fn` for what the authors' code records (without the up factor).
        final_norm: `fold` also records the gain of the final norm.
        layers: decoder layers to look at; all when None.
        batch_size: pictures per batch.

    Returns:
        The sightings in order of pictures.

    Raises:
        RequestError: if a layer does not exist, an option is unknown, or `choose` says so.
    """
    if final_norm not in ("ignore", "fold") or activation not in ("w_out_input", "act_fn"):
        raise RequestError(
            "no such option",
            got=f"activation={activation!r}, final_norm={final_norm!r}",
            expected="w_out_input or act_fn; ignore or fold",
        )
    sites, kept, done = vlm.architecture.sites_of(None if layers is None else list(layers)), [], 0
    with Trace(vlm.architecture, sites, activation, residual=final_norm == "fold") as trace:
        for batch in batches(images, batch_size):
            generations = vlm.generate_batch(vlm.inputs(batch, prompt))
            for row, generation in enumerate(generations):
                for occurrence in choose(done + row, generation):
                    step = occurrence.index
                    gain = norm_gain(vlm.architecture, trace.residual_at(step, row)) if final_norm == "fold" else None
                    kept.append(
                        Sighting(
                            done + row,
                            generation,
                            occurrence,
                            {site: trace.at(site, step, row) for site in sites},
                            gain,
                        )
                    )
            done += len(generations)
            trace.clear()
    return kept


def source_sightings(
    vlm: VisionLanguageModel, images: Any, source: str, prompt: str | Prompt | None = None, **options: Any
) -> list[Sighting]:
    """The sightings of a source that each caption must have; arguments and errors as for `locate_word`."""

    def choose(picture: int, generation: Generation) -> list[Occurrence]:
        return require_occurrences(generation.ids, source, vlm.tokenizer, where=f"picture {picture}")

    return sightings(vlm, images, choose, prompt, **options)


def norm_gain(architecture: Architecture, residual: Tensor) -> Tensor:
    """How much each component of the residual stream is scaled on its way to W_U, with the norm's scale held fixed.

    Args:
        architecture: whose final norm it is.
        residual: what enters that norm `[d_model]`.

    Returns:
        `[d_model]` in float32, with which `W_U · (gain ⊙ residual)` is the logit, for RMS norms exactly.

    Raises:
        ModelError: if the model has no final norm, or one that also centres its input.
    """
    norm = architecture.final_norm
    if norm is None or isinstance(norm, torch.nn.LayerNorm):
        raise ModelError(
            "final_norm='fold' needs an RMS norm before the unembedding",
            got=type(norm).__name__,
            do="use final_norm='ignore', as the paper does",
        )
    x = residual.float()
    with torch.inference_mode():
        normed = norm(residual).float()
    return torch.where(x == 0, torch.zeros_like(x), normed / torch.where(x == 0, torch.ones_like(x), x))
