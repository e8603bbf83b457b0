"""The pictures of IconWorld: one or two coloured things on a ground, drawn from a seed.

A picture is a pure function of its split and number, so nothing has to be stored: train, validation and benchmark
pictures come from number ranges that never meet.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from mmedit.testbed.icons import paint

SIZE = 64  # pixels a side
KINDS = {
    "animal": ("cat", "dog", "bird", "fish"),
    "vehicle": ("car", "boat", "plane", "lorry"),
    "plant": ("tree", "flower", "cactus", "mushroom"),
    "building": ("house", "church", "lighthouse", "tent"),
    "toy": ("ball", "kite", "drum", "robot"),
}
NOUNS = tuple(noun for nouns in KINDS.values() for noun in nouns)
COLOURS = {
    "red": (212, 44, 44), "blue": (48, 92, 216), "green": (70, 200, 60),
    "yellow": (246, 208, 40), "purple": (142, 60, 186), "orange": (244, 130, 28),
}  # fmt: skip
GROUNDS = {
    "grass": (96, 150, 84), "sand": (222, 198, 148), "snow": (232, 236, 244),
    "water": (112, 168, 206), "road": (122, 122, 128), "floor": (166, 122, 88),
}  # fmt: skip
Arrangement = Literal["one", "pair", "beside", "above"]
ARRANGEMENTS: tuple[Arrangement, ...] = ("one", "pair", "beside", "above")
SPLITS = {"train": 0, "validation": 10**9, "benchmark": 2 * 10**9}


@dataclass(frozen=True)
class Thing:
    """One drawn thing: what it is, its colour, and the square that it fills (pixels)."""

    noun: str
    colour: str
    left: int
    top: int
    size: int
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `pair` is two of the same thing; `beside` lists the left one first, `above` the upper one."""

    ground: str
    arrangement: Arrangement
    things: tuple[Thing, ...]
    seed: int

    @property
    def nouns(self) -> tuple[str, ...]:
        """The different nouns of the picture, in reading order."""
        return tuple(dict.fromkeys(thing.noun for thing in self.things))


def scene(
    split: str,
    number: int,
    include: str | None = None,
    exclude: Collection[str] = (),
    arrangement: Arrangement | None = None,
) -> Scene:
    """The scene with a given number.

    Args:
        split: `train`, `validation` or `benchmark`.
        number: 0 to 10**9 - 1; scenes of different splits never share a seed.
        include: a noun that the scene must contain.
        exclude: nouns that it must not contain.
        arrangement: one of `ARRANGEMENTS`; drawn at random when None.

    Returns:
        The scene, the same for the same arguments on every machine.

    Raises:
        ValueError: for an unknown split or a number out of its range.

    Example:
        >>> scene("benchmark", 3, include="cat").nouns.count("cat")
        1
    """
    if split not in SPLITS or not 0 <= number < 10**9:
        raise ValueError(
            f"scene(split={split!r}, number={number}): split is one of {list(SPLITS)}, number 0 to 10**9 - 1"
        )
    seed = SPLITS[split] + number
    rng = random.Random(seed)
    chosen = arrangement or rng.choices(ARRANGEMENTS, weights=(3, 2, 3, 2))[0]
    nouns = [noun for noun in NOUNS if noun not in exclude]
    first, second = rng.sample(nouns, 2)
    if include and include not in (first, second):
        first, second = (include, second) if rng.random() < 0.5 or chosen in ("one", "pair") else (first, include)
    elif include == second and chosen in ("one", "pair"):
        first = second
    drawn = {"one": (first,), "pair": (first, first), "beside": (first, second), "above": (first, second)}[chosen]
    return Scene(rng.choice(list(GROUNDS)), chosen, _place(rng, chosen, drawn), seed)


def _place(rng: random.Random, arrangement: Arrangement, nouns: tuple[str, ...]) -> tuple[Thing, ...]:
    """Give each noun a colour, a size and a place in its part of the picture."""
    colours = [rng.choice(list(COLOURS)) for _ in nouns]
    if arrangement == "one":
        size = rng.randint(30, 54)
        return (
            Thing(
                nouns[0],
                colours[0],
                rng.randint(2, SIZE - 2 - size),
                rng.randint(2, SIZE - 2 - size),
                size,
                rng.random() < 0.5,
            ),
        )
    if arrangement == "pair":
        colours = colours[:1] * 2
    along = [
        (1 + rng.randint(0, 2), 24 + rng.randint(0, 5)),
        (SIZE // 2 + 1 + rng.randint(0, 2), 24 + rng.randint(0, 4)),
    ]
    shared = rng.randint(2, SIZE - 42)
    across = [shared + rng.randint(0, 10) for _ in nouns]
    places = [
        (a, c, size) if arrangement != "above" else (c, a, size) for (a, size), c in zip(along, across, strict=True)
    ]
    return tuple(
        Thing(n, col, x, y, size, rng.random() < 0.5)
        for n, col, (x, y, size) in zip(nouns, colours, places, strict=True)
    )


def render(scene: Scene) -> tuple[Image.Image, list[np.ndarray]]:
    """Draw a scene.

    Args:
        scene: what to draw.

    Returns:
        The RGB picture, `SIZE` pixels a side, and for each thing its region, bool `[SIZE, SIZE]`.

    Example:
        >>> picture, masks = render(scene("train", 0))
        >>> picture.size, masks[0].dtype.name
        ((64, 64), 'bool')
    """
    rng = np.random.default_rng(scene.seed)
    blocks = rng.normal(0, 9, (SIZE // 4, SIZE // 4, 1)).repeat(4, 0).repeat(4, 1)
    slope = np.linspace(-1, 1, SIZE)[:, None, None] * rng.uniform(-16, 16)
    ground = np.array(GROUNDS[scene.ground]) + rng.normal(0, 6, 3) + blocks + slope + rng.normal(0, 3, (SIZE, SIZE, 3))
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    masks, tint = [], rng.normal(0, 10, 3)
    for thing in scene.things:
        red, green, blue = np.clip(np.array(COLOURS[thing.colour]) + tint, 0, 255).astype(int).tolist()
        drawing = paint(thing.noun, (red, green, blue), thing.size, thing.mirrored)
        picture.paste(drawing, (thing.left, thing.top), drawing)
        mask = np.zeros((SIZE, SIZE), bool)
        mask[thing.top : thing.top + thing.size, thing.left : thing.left + thing.size] = (
            np.asarray(drawing)[..., 3] > 127
        )
        masks.append(mask)
    return picture, masks
