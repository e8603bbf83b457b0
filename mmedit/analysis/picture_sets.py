"""The pictures of a study: IconWorld's, whose objects' regions are known, or a user's own."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmedit.data.pictured import Pictured
from mmedit.data.pictures import read_pictures
from mmedit.testbed.benchmark import Drawing
from mmedit.testbed.world import Scene, render, scene

Regions = Mapping[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class PictureSet:
    """Pictures, and where their objects are.

    Args:
        name: for titles.
        pictures: in order.
        scenes: of IconWorld's pictures, else empty.
    """

    name: str
    pictures: Sequence[Pictured]
    scenes: Sequence[Scene] = ()

    @property
    def objects(self) -> set[str] | None:
        """The objects known of any picture, or None where nothing is known."""
        known = {word for picture in self.pictures for word in picture.objects or ()}
        return known or None

    def regions(self, number: int) -> Regions:
        """Where the objects of a picture are, by noun, `[height, width]`; empty where that is not known."""
        if not self.scenes:
            return {}
        drawn, found = self.scenes[number], dict[str, Any]()
        for thing, mask in zip(drawn.things, render(drawn)[1], strict=True):
            found[thing.noun] = found.get(thing.noun, np.zeros_like(mask)) | mask
        return found


def picture_set(places: Sequence[str], n: int | None = None, seed: int = 0) -> PictureSet:
    """The pictures that a user names.

    Args:
        places: `iconworld` alone, or anything that `read_pictures` takes.
        n: so many of them, IconWorld's first ones or a sample; all when None (of IconWorld 200).
        seed: of the sample.

    Returns:
        The set; a sample is in the order of the whole.

    Raises:
        ImageError: if a place has no pictures.

    Example:
        >>> world = picture_set(["iconworld"], n=3)
        >>> [sorted(world.regions(i)) == sorted(set(world.pictures[i].objects)) for i in range(3)]
        [True, True, True]
    """
    if list(places) == ["iconworld"]:
        scenes = [scene("benchmark", number) for number in range(200 if n is None else n)]
        pictures = [
            Pictured(Drawing(drawn), objects=drawn.nouns, label=f"iconworld {i}") for i, drawn in enumerate(scenes)
        ]
        return PictureSet("IconWorld", pictures, scenes)
    found = read_pictures(list(places))
    if n is not None and n < len(found):
        found = [found[i] for i in sorted(random.Random(seed).sample(range(len(found)), n))]
    return PictureSet(", ".join(map(str, places)), found)
