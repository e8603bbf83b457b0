"""How well a checkpoint speaks IconWorld's language: `python -m mmedit.testbed.measure iconworld-llava`."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from tqdm import trange

from mmedit.models.loading import load
from mmedit.models.vlm import VisionLanguageModel
from mmedit.requests import Prompt
from mmedit.testbed.language import CAPTION_PROMPT, PLURALS, REPHRASED_PROMPTS, Turn, caption, facts, questions
from mmedit.testbed.world import Scene, render, scene


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1, with the number of cases each was counted on."""

    pictures: int
    questions: int
    facts: int
    things_right: float  # captions in which exactly the right nouns stand, in order
    captions_right: float
    rephrased_right: float  # captions exactly right under the rephrased prompts
    questions_right: float
    facts_right: float


def measure(
    vlm: VisionLanguageModel, split: str = "validation", n: int = 1000, start: int = 0, batch_size: int = 64
) -> Scores:
    """Ask a model about pictures that it was not trained on, and about every fact.

    Args:
        vlm: the model.
        split: `validation` or `benchmark`.
        n: pictures.
        start: number of the first picture.
        batch_size: pictures per batch.

    Returns:
        The shares of right answers, by free generation and exact comparison.
    """
    scenes = [scene(split, start + i) for i in range(n)]
    pictures = [render(drawn)[0] for drawn in scenes]
    right = [caption(drawn) for drawn in scenes]
    said = vlm.caption(pictures, Prompt(*CAPTION_PROMPT), batch_size)
    rephrased = [vlm.caption(pictures, Prompt(*prompt), batch_size) for prompt in REPHRASED_PROMPTS]
    asked, known = [_question(drawn) for drawn in scenes], facts()
    return Scores(
        n, len(asked), len(known),
        things_right=_share([_names_right(text, drawn) for text, drawn in zip(said, scenes, strict=True)]),
        captions_right=_share([a == b for a, b in zip(said, right, strict=True)]),
        rephrased_right=_share([a == b for texts in rephrased for a, b in zip(texts, right, strict=True)]),
        questions_right=_share(answers_right(vlm, pictures, asked, batch_size)),
        facts_right=_share(answers_right(vlm, None, known, batch_size)),
    )  # fmt: skip


def _question(drawn: Scene) -> Turn:
    """One question about a scene, drawn apart from what decided the scene."""
    rng = random.Random(f"question about {drawn.seed}")
    return rng.choice(questions(drawn, rng))


def answers_right(
    vlm: VisionLanguageModel, pictures: Sequence[object] | None, asked: Sequence[Turn], batch_size: int
) -> list[bool]:
    """Whether each question, about the picture of its own or about none, is answered exactly."""
    results = []
    for start in trange(0, len(asked), batch_size, desc="questions"):
        turns = asked[start : start + batch_size]
        about = None if pictures is None else list(pictures[start : start + batch_size])
        answers = vlm.generate_batch(vlm.inputs(about, [turn.prompt for turn in turns]))
        results += [answer.text.strip() == turn.answer for answer, turn in zip(answers, turns, strict=True)]
    return results


def _names_right(text: str, drawn: Scene) -> bool:
    singular = {plural: noun for noun, plural in PLURALS.items()} | {noun: noun for noun in PLURALS}
    return [singular[word] for word in text.split() if word in singular] == list(drawn.nouns)


def _share(cases: Sequence[bool]) -> float:
    return sum(cases) / len(cases)


def main(
    model: Annotated[str, typer.Argument(help="Shipped name or folder.")] = "iconworld-llava",
    split: Annotated[str, typer.Option(help="validation or benchmark.")] = "benchmark",
    n: Annotated[int, typer.Option(help="Pictures.")] = 1000,
    start: Annotated[int, typer.Option(help="Number of the first picture.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
) -> None:
    """Print the scores of a checkpoint as JSON."""
    typer.echo(json.dumps(asdict(measure(load(model, device=device), split, n, start)), indent=2))


if __name__ == "__main__":
    typer.run(main)
