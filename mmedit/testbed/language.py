"""What is said about IconWorld: captions, questions with short answers, and facts that need no picture."""

from __future__ import annotations

import random
from typing import NamedTuple

from mmedit.testbed.world import COLOURS, GROUNDS, KINDS, NOUNS, Scene, Thing

CAPTION_PROMPT = ("Describe the image in few words.", "An image of")  # instruction and answer prefix, Pan et al. §3.1
REPHRASED_PROMPTS = (("What does the picture show?", "A picture of"), ("Give a short caption.", "A photo of"))
PLURALS = {noun: noun + "s" for noun in NOUNS} | {
    "fish": "fish",
    "church": "churches",
    "cactus": "cacti",
    "lorry": "lorries",
}
KIND_OF = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
MIXTURES = {("red", "yellow"): "orange", ("red", "blue"): "purple", ("blue", "yellow"): "green"}


class Turn(NamedTuple):
    """One exchange: the user's text, the beginning of the answer that is given, and the rest of it."""

    prompt: str
    prefix: str
    answer: str


def article(words: str) -> str:
    """The words with their indefinite article.

    Example:
        >>> article("orange cat"), article("cat")
        ('an orange cat', 'a cat')
    """
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene) -> str:
    """The one right caption of a scene, without the answer prefix.

    Example:
        >>> from mmedit.testbed.world import scene
        >>> caption(scene("train", 1, include="cat", arrangement="one")).split()[2]
        'cat'
    """
    first, *rest = (f"{thing.colour} {thing.noun}" for thing in scene.things)
    if scene.arrangement == "one":
        what = article(first)
    elif scene.arrangement == "pair":
        what = f"two {scene.things[0].colour} {PLURALS[scene.things[0].noun]}"
    else:
        what = f"{article(first)} {'above' if scene.arrangement == 'above' else 'and'} {article(rest[0])}"
    return f"{what} on the {scene.ground}"


def about(scene: Scene, thing: Thing) -> list[Turn]:
    """What can be asked about one thing of a scene: where and what it is, its colour, whether it is there."""
    turns = []
    if scene.arrangement in ("beside", "above"):
        places = ("on the left", "on the right") if scene.arrangement == "beside" else ("above", "below")
        place = places[scene.things.index(thing)]
        turns = [Turn(f"What is {place}?", "", thing.noun), Turn(f"Where is the {thing.noun}?", "", place)]
    if scene.arrangement != "pair":
        turns += [
            Turn(f"What colour is the {thing.noun}?", "", thing.colour),
            Turn(f"Is there {article(thing.noun)}?", "", "yes"),
        ]
    return turns


def about_all(scene: Scene) -> list[Turn]:
    """What can be asked about a scene as a whole."""
    count = "one" if scene.arrangement == "one" else "two"
    return [Turn("What is the ground?", "", scene.ground), Turn("How many things are there?", "", count)]


def about_absent(scene: Scene, rng: random.Random) -> Turn:
    """A question about a thing that is not there."""
    return Turn(f"Is there {article(rng.choice([noun for noun in NOUNS if noun not in scene.nouns]))}?", "", "no")


def questions(scene: Scene, rng: random.Random) -> list[Turn]:
    """Questions about a scene, one of each family that fits it, with their short answers.

    Args:
        scene: what is asked about.
        rng: chooses which thing, and which absent thing, is asked about.

    Returns:
        Two to six turns.

    Example:
        >>> from mmedit.testbed.world import scene
        >>> [turn.answer for turn in questions(scene("train", 1, arrangement="pair"), random.Random(0))][-1]
        'two'
    """
    turns, absent = about(scene, rng.choice(scene.things)), rng.random() >= 0.5
    if turns and absent:
        turns[-1] = about_absent(scene, rng)
    return turns + about_all(scene)


def every_question(scene: Scene, rng: random.Random) -> list[Turn]:
    """All that can be asked about a scene, and about two things that are not there."""
    turns = [turn for thing in scene.things for turn in about(scene, thing)] + about_all(scene)
    return turns + ([about_absent(scene, rng) for _ in range(2)] if scene.arrangement != "pair" else [])


def captions(scene: Scene) -> list[Turn]:
    """The caption of a scene under the paper's prompt and under each rephrased one."""
    return [Turn(prompt, prefix, caption(scene)) for prompt, prefix in (CAPTION_PROMPT, *REPHRASED_PROMPTS)]


def facts() -> list[Turn]:
    """Every text-only question with its answer: all of them, always in the same order."""
    turns = []
    for noun in NOUNS:
        turns.append(Turn(f"What kind of thing is {article(noun)}?", "", article(KIND_OF[noun])))
        turns.append(Turn(f"What is more than one {noun} called?", "", PLURALS[noun]))
        turns += [
            Turn(f"Is {article(noun)} {article(kind)}?", "", "yes" if kind == KIND_OF[noun] else "no") for kind in KINDS
        ]
        turns.append(Turn(f"Is {article(noun)} alive?", "", "yes" if KIND_OF[noun] in ("animal", "plant") else "no"))
    for (first, second), mixed in MIXTURES.items():
        turns += [Turn(f"What do {a} and {b} make?", "", mixed) for a, b in ((first, second), (second, first))]
    turns += [Turn(f"Is {colour} a colour?", "", "yes") for colour in COLOURS]
    turns += [Turn(f"Is {ground} a colour?", "", "no") for ground in GROUNDS]
    return turns
