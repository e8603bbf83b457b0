"""IconWorld: pictures, a language, and small real checkpoints trained on them, so that every claim can be seen."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from mmedit.testbed.language import CAPTION_PROMPT as CAPTION_PROMPT
from mmedit.testbed.language import REPHRASED_PROMPTS as REPHRASED_PROMPTS
from mmedit.testbed.language import caption
from mmedit.testbed.world import NOUNS as NOUNS
from mmedit.testbed.world import Thing as Thing
from mmedit.testbed.world import render, scene


def benchmark_pictures(n: int) -> Iterator[tuple[Image.Image, str, tuple[Thing, ...]]]:
    """The first pictures of the benchmark split, which no checkpoint was trained on.

    Args:
        n: how many.

    Yields:
        The picture, its one right caption (without the answer prefix), and the things in it.

    Example:
        >>> [caption for _, caption, _ in benchmark_pictures(2)] == [caption for _, caption, _ in benchmark_pictures(2)]
        True
    """
    for number in range(n):
        drawn = scene("benchmark", number)
        yield render(drawn)[0], caption(drawn), drawn.things
