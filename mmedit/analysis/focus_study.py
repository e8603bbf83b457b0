"""The focus of every concept of a picture set: numbers where regions are known, and pictures to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmedit.analysis.focus import KS, heatmap, image_activations, mask, masked, on_object, overlay
from mmedit.analysis.picture_sets import PictureSet
from mmedit.analysis.survey import Concept, Surveyed
from mmedit.evaluation.intervals import Estimate, estimate
from mmedit.evaluation.journal import Journal
from mmedit.models.images import load_image
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron
from mmedit.processes import ALONE, Processes
from mmedit.requests import Prompt


@dataclass(frozen=True)
class Focused:
    """How much of one concept's heatmap falls on its object.

    Args:
        number: of the picture in its set.
        concept: the word.
        method: whose neurons.
        k: how many of them.
        hit: whether the greatest value is on the object.
        mass: the share of the values that is on the object.
        area: the share of the picture that the object takes.
    """

    number: int
    concept: str
    method: str
    k: int
    hit: bool
    mass: float
    area: float


def focus_numbers(
    vlm: VisionLanguageModel, pictures: PictureSet, found: Sequence[Surveyed], *, ks: Sequence[int] = KS,
    prompt: str | Prompt | None = None, journal: Journal | None = None, processes: Processes = ALONE,
) -> Iterator[Focused]:  # fmt: skip
    """For every concept whose region is known, how much of the activation of its neurons falls there.

    Args:
        vlm: the model.
        pictures: the picture set of the survey.
        found: the survey.
        ks: how many neurons.
        prompt: that of the survey.
        journal: what is done already, and where to write what comes.
        processes: of which this one does its share.

    Yields:
        A row for each concept, method and k.

    Raises:
        ModelError: if the model's image tokens are not a grid over the picture.
    """
    done = {line["number"]: line["rows"] for line in journal.lines()} if journal else {}
    for surveyed in processes.share(found):
        if surveyed.number not in done:
            done[surveyed.number] = [vars(row) for row in _of_picture(vlm, pictures, surveyed, ks, prompt)]
            if journal:
                journal.write({"number": surveyed.number, "rows": done[surveyed.number]})
        yield from (Focused(**row) for row in done[surveyed.number])


def _of_picture(
    vlm: VisionLanguageModel, pictures: PictureSet, surveyed: Surveyed, ks: Sequence[int], prompt: str | Prompt | None
) -> Iterator[Focused]:
    regions = pictures.regions(surveyed.number)
    concepts = [concept for concept in surveyed.concepts if concept.word.casefold() in regions]
    if not concepts:
        return
    neurons = list(
        dict.fromkeys(n for c in concepts for ranked in c.rankings.values() for n in ranked.neurons[: max(ks)])
    )
    activations = image_activations(vlm, pictures.pictures[surveyed.number].image, neurons, prompt)
    row = {neuron: i for i, neuron in enumerate(neurons)}
    for concept in concepts:
        region = regions[concept.word.casefold()]
        for method, ranked in concept.rankings.items():
            for k in (k for k in ks if k <= len(ranked.neurons)):
                chosen = activations[[row[neuron] for neuron in ranked.neurons[:k]]]
                found = on_object(heatmap(chosen, region.shape[1], region.shape[0]), region)
                yield Focused(surveyed.number, concept.word, method, k, found.hit, found.mass, found.area)


def focus_summary(rows: Sequence[Focused]) -> dict[tuple[str, int], tuple[Estimate, Estimate, Estimate]]:
    """For each method and k: pointing-game accuracy, share of mass on the object, the object's share of the area."""
    groups: dict[tuple[str, int], list[Focused]] = {}
    for row in rows:
        groups.setdefault((row.method, row.k), []).append(row)
    return {
        key: tuple(
            estimate([float(getattr(r, name)) for r in of], [r.number for r in of]) for name in ("hit", "mass", "area")
        )  # type: ignore[misc]
        for key, of in groups.items()
    }


def focus_panel(
    vlm: VisionLanguageModel, image: object, concept: Concept, method: str, ks: Sequence[int] = KS, prompt: str | Prompt | None = None, side: int = 192
) -> list[tuple[str, Image.Image]]:  # fmt: skip
    """The picture as the model sees it, and for each k its heatmap and its mask.

    Args:
        vlm: the model.
        image: one picture.
        concept: of its survey.
        method: whose neurons.
        ks: how many neurons.
        prompt: that of the survey.
        side: of the pictures, in pixels.

    Returns:
        Pictures with what they are.

    Raises:
        ModelError: if the model's image tokens are not a grid over the picture.
    """
    neurons: tuple[Neuron, ...] = concept.rankings[method].neurons[: max(ks)]
    activations = image_activations(vlm, image, neurons, prompt)
    seen = as_seen(vlm, image).resize((side, side), Image.Resampling.NEAREST)
    panel = [("picture", seen)]
    for k in (k for k in ks if k <= len(neurons)):
        values = heatmap(activations[:k], side, side)
        panel += [(f"top {k}", overlay(seen, values)), (f"top {k}, mask", masked(seen, mask(values)))]
    return panel


def as_seen(vlm: VisionLanguageModel, image: object) -> Image.Image:
    """The picture as the processor cropped and scaled it, where that can be told from its pixel values."""
    pixels = vlm.inputs(image, None).get("pixel_values")
    processor = getattr(vlm.processor, "image_processor", None)
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if pixels is None or pixels.dim() != 4 or pixels.shape[1] != 3 or mean is None or std is None:
        return load_image(image)
    values = pixels[0].float().cpu().numpy().transpose(1, 2, 0) * np.array(std) + np.array(mean)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
