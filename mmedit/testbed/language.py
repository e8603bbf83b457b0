"""What is said about IconWorld: captions, questions with short answers, and facts that need no picture."""

from __future__ import annotations

import random
from typing import NamedTuple

from mmedit.testbed.world import COLOURS, GROUNDS, KINDS, NOUNS, Scene

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
    thing = rng.choice(scene.things)
    present = rng.random() < 0.5
    asked = thing.noun if present else rng.choice([noun for noun in NOUNS if noun not in scene.nouns])
    turns = []
    if scene.arrangement in ("beside", "above"):
        places = ("on the left", "on the right") if scene.arrangement == "beside" else ("above", "below")
        index = scene.things.index(thing)
        turns += [
            Turn(f"What is {places[index]}?", "", thing.noun),
            Turn(f"Where is the {thing.noun}?", "", places[index]),
        ]
    if scene.arrangement != "pair":
        turns += [
            Turn(f"What colour is the {thing.noun}?", "", thing.colour),
            Turn(f"Is there {article(asked)}?", "", "yes" if present else "no"),
        ]
    turns += [
        Turn("What is the ground?", "", scene.ground),
        Turn("How many things are there?", "", "one" if scene.arrangement == "one" else "two"),
    ]
    return turns


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
