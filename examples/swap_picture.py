"""Draw the README's picture of a swap: captions of five pictures before and after cat → dog.

python examples/swap_picture.py examples/swap.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import mmedit
from mmedit.evaluation.metrics import changed_words
from mmedit.testbed.world import render, scene

SOURCE, TARGET = "cat", "dog"
SIDE, GAP, TEXT = 208, 16, 66  # pixels: a picture, the space between two, the captions under it
INK, SOFT, MARK = (29, 35, 48), (110, 118, 135), (255, 224, 138)


def words(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    text: list[tuple[str, bool]],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> int:
    """Write words into a column, the changed ones marked; returns the next free line."""
    line, left = y, x
    for word, changed in text:
        width = int(draw.textlength(f"{word} ", font))
        if left + width > x + SIDE:
            line, left = line + 17, x
        if changed:
            draw.rectangle((left - 1, line, left + width - 4, line + 15), fill=MARK)
        draw.text((left, line), word, fill=colour, font=font)
        left += width
    return line + 17


def main(output: Path) -> None:
    vlm = mmedit.load("iconworld-llava")
    drawn = [scene("benchmark", 1000 + i, include=SOURCE, arrangement=("one", "beside", "above")[i]) for i in range(3)]
    drawn += [scene("benchmark", 2000 + i, exclude=(SOURCE,)) for i in (0, 2)]
    pictures = [render(what)[0] for what in drawn]
    editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
    patch = editor.execute(vlm, mmedit.EditRequest(pictures[0], SOURCE, TARGET))
    before = vlm.caption(pictures)
    with patch.applied(vlm):
        after = vlm.caption(pictures)
    font = ImageFont.load_default(13)
    image = Image.new("RGB", (len(pictures) * (SIDE + GAP) + GAP, 30 + SIDE + TEXT + 2 * GAP), "white")
    draw = ImageDraw.Draw(image)
    titles = ["the edit picture", "other pictures with a cat", "", "unrelated pictures", ""]
    for i, (picture, old, new, title) in enumerate(zip(pictures, before, after, titles, strict=True)):
        x = GAP + i * (SIDE + GAP)
        draw.text((x, GAP - 6), title, fill=INK, font=font)
        image.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, 30))
        y = words(draw, x, 30 + SIDE + 8, [(word, False) for word in old.split()], SOFT, font)
        words(draw, x, y + 2, changed_words(old, new), INK, font)
    image.save(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
