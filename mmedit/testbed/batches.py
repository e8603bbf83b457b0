"""Training batches: a picture's tokens once, then several independent exchanges about it in the same row.

Every exchange sees the picture and itself but no other exchange, and its positions start right after the picture. So a
row teaches exactly what separate rows would, at a third of the cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaProcessor

from mmedit.testbed.checkpoint import PATCH, turn_texts
from mmedit.testbed.language import Turn, about, captions, every_question, facts, questions
from mmedit.testbed.world import COLOURS, GROUNDS, NOUNS, SIZE, Arrangement, Scene, render, scene

IGNORED = -100
N_IMAGE_TOKENS = (SIZE // PATCH) ** 2


@dataclass
class Batch:
    """Tensors of one step; `mask` is additive, 0 where a token may look."""

    pixel_values: Tensor  # [pictures, 3, SIZE, SIZE]
    input_ids: Tensor  # [rows, length]
    position_ids: Tensor  # [rows, length]
    mask: Tensor  # [rows, 1, length, length]
    labels: Tensor  # [rows, length], already shifted: what follows each token, or IGNORED

    def to(self, device: str) -> Batch:
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


Choose = Callable[[Scene, random.Random], list[Turn]]


def captions_and_questions(drawn: Scene, rng: random.Random) -> list[Turn]:
    """The caption, a rephrased one, and two questions of different families."""
    first, *rephrased = captions(drawn)
    return [first, rng.choice(rephrased), *rng.sample(questions(drawn, rng), 2)]


def colours(drawn: Scene, rng: random.Random) -> list[Turn]:
    """The colour of each thing: what it takes to look a thing up by its name, and nothing else."""
    return [turn for thing in drawn.things for turn in about(drawn, thing) if turn.answer == thing.colour]


def many_questions(drawn: Scene, rng: random.Random) -> list[Turn]:
    """The caption, a rephrased one, and up to eight of all questions."""
    first, *rephrased = captions(drawn)
    asked = every_question(drawn, rng)
    return [first, rng.choice(rephrased), *rng.sample(asked, min(8, len(asked)))]


class BatchMaker:
    """Makes the batch of a given step from the processor alone, the same on every machine.

    Args:
        processor: of the model to train.
        pictures: per batch.
        fact_rows: rows of text-only exchanges per batch.
        choose: the exchanges about a picture.
        arrangements: of the pictures; all when None.
    """

    def __init__(
        self, processor: LlavaProcessor, pictures: int, fact_rows: int, choose: Choose = captions_and_questions,
        arrangements: Sequence[Arrangement] | None = None,
    ) -> None:  # fmt: skip
        self.processor, self.pictures, self.fact_rows = processor, pictures, fact_rows
        self.choose, self.arrangements = choose, arrangements
        self._ids = lru_cache(maxsize=None)(self._tokenize)

    def scenes(self, step: int) -> list[Scene]:
        """The scenes of a step, all from the training split."""
        kinds: Sequence[Arrangement | None] = self.arrangements or [None]
        return [
            scene("train", step * self.pictures + i, arrangement=kinds[i % len(kinds)]) for i in range(self.pictures)
        ]

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        rng, scenes = random.Random(f"turns of step {step}"), self.scenes(step)
        rows = [self._row(self.choose(drawn, rng), with_image=True) for drawn in scenes]
        rows += [self._row(rng.sample(facts(), 10), with_image=False) for _ in range(self.fact_rows)]
        pixels = pixel_values(self.processor, [render(drawn)[0] for drawn in scenes])
        return _collate(pixels, rows, self.processor.tokenizer.pad_token_id)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.processor.tokenizer(text, add_special_tokens=False).input_ids)

    def _row(self, turns: Sequence[Turn], with_image: bool) -> _Row:
        tokenizer, image = self.processor.tokenizer, self.processor.image_token_id
        row = _Row([tokenizer.bos_token_id])
        for turn in turns:
            before, answer = (self._ids(text) for text in turn_texts(turn, with_image))
            if with_image:
                cut = before.index(image)
                if len(row.ids) == 1:
                    row.share([*before[:cut], *[image] * N_IMAGE_TOKENS])
                before = before[cut + 1 :]
            row.branch(before, [*answer, tokenizer.eos_token_id])
        return row


class _Row:
    """Token ids of one row with, for each, its branch (0: shared by all) and its position."""

    def __init__(self, shared: Sequence[int]) -> None:
        self.ids: list[int] = []
        self.branches: list[int] = []
        self.positions: list[int] = []
        self.labels: list[int] = []
        self.share(shared)

    def share(self, ids: Sequence[int]) -> None:
        self._extend(ids, 0, len(self.ids), [IGNORED] * len(ids))

    def branch(self, before: Sequence[int], answer: Sequence[int]) -> None:
        start = self.branches.count(0)
        labels = [*[IGNORED] * (len(before) - 1), *answer, IGNORED]
        self._extend([*before, *answer], max(self.branches) + 1, start, labels)

    def _extend(self, ids: Sequence[int], branch: int, start: int, labels: Sequence[int]) -> None:
        self.ids += ids
        self.branches += [branch] * len(ids)
        self.positions += range(start, start + len(ids))
        self.labels += labels


def _collate(pixels: Tensor, rows: Sequence[_Row], pad_id: int) -> Batch:
    def padded(values: list[list[int]], fill: int) -> Tensor:
        length = max(map(len, values))
        return torch.tensor([v + [fill] * (length - len(v)) for v in values])

    branches = padded(
        [row.branches for row in rows], -1
    )  # padding is a branch of its own, so that no row of the mask is empty
    length = branches.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = causal & ((branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None]))
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]
    return Batch(
        pixels,
        padded([row.ids for row in rows], pad_id),
        padded([row.positions for row in rows], 0),
        mask,
        padded([row.labels for row in rows], IGNORED),
    )


def pixel_values(processor: LlavaProcessor, pictures: Sequence[object]) -> Tensor:
    """Pictures of the model's own size as the processor would normalise them, float32 `[n, 3, SIZE, SIZE]`."""
    kind = processor.image_processor
    pixels = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float32) * kind.rescale_factor
    normal = (pixels - np.array(kind.image_mean, np.float32)) / np.array(kind.image_std, np.float32)
    return torch.from_numpy(normal).permute(0, 3, 1, 2).contiguous()


def patch_labels(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """What each image token shows, for warming up the vision tower.

    Returns:
        Indices into `("nothing", *NOUNS)` and into `("nothing", *COLOURS)`, each int64 `[n, tokens]`, and into `GROUNDS`, int64 `[n]`.
    """
    grid = SIZE // PATCH
    nouns, colours = (torch.zeros(len(scenes), grid * grid, dtype=torch.long) for _ in range(2))
    for i, drawn in enumerate(scenes):
        for thing, mask in zip(drawn.things, render(drawn)[1], strict=True):
            share = mask.reshape(grid, PATCH, grid, PATCH).mean((1, 3)).reshape(-1)
            covered = torch.from_numpy(share > 0.25)
            nouns[i, covered] = 1 + NOUNS.index(thing.noun)
            colours[i, covered] = 1 + list(COLOURS).index(thing.colour)
    return nouns, colours, torch.tensor([list(GROUNDS).index(drawn.ground) for drawn in scenes])
