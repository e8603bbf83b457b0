"""Training batches: a picture's tokens once, then several independent exchanges about it in the same row.

Every exchange sees the picture and itself but no other exchange, and its positions start right after the picture. So a
row teaches exactly what separate rows would, at a third of the cost. Where the image tokens depend on the instruction,
there is nothing to share, and every exchange has a row of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmedit.testbed.checkpoint import Family
from mmedit.testbed.language import Turn, about, captions, every_question, facts, questions
from mmedit.testbed.seeing import PatchLabels, patch_labels
from mmedit.testbed.world import Arrangement, Scene, render, scene

IGNORED = -100
ROUND = 16  # lengths are padded to multiples of it: for every new shape oneDNN keeps a kernel, gigabytes in the end


@dataclass
class Batch:
    """Tensors of one step; `mask` is additive, 0 where a token may look."""

    pixel_values: Tensor  # [pictures, 3, SIZE, SIZE]
    input_ids: Tensor  # [rows, length]
    position_ids: Tensor  # [rows, length]
    mask: Tensor  # [rows, 1, length, length]
    labels: Tensor  # [rows, length], already shifted: what follows each token, or IGNORED
    seen: Tensor  # [rows]: the picture that each row is about; rows about none come last and say 0
    instructions: (
        Tensor  # [rows, length], without image tokens, padded at the end; [rows, 0] where pictures are seen without
    )
    instruction_mask: Tensor  # of the same shape: 1 where an instruction is, 0 for padding

    def to(self, device: str) -> Batch:
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


Choose = Callable[[Scene, random.Random], list[Turn]]


def one_caption(drawn: Scene, rng: random.Random) -> list[Turn]:
    """The caption, under any of its prompts."""
    return [rng.choice(captions(drawn))]


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
        family: of the model to train.
        processor: of the model to train.
        pictures: per batch.
        fact_rows: rows of text-only exchanges per batch.
        choose: the exchanges about a picture.
        arrangements: of the pictures; all when None.
    """

    def __init__(
        self, family: Family, processor: Any, pictures: int, fact_rows: int, choose: Choose = captions_and_questions,
        arrangements: Sequence[Arrangement] | None = None,
    ) -> None:  # fmt: skip
        self.family, self.processor, self.pictures, self.fact_rows = family, processor, pictures, fact_rows
        self.choose, self.arrangements = choose, arrangements
        self._ids = lru_cache(maxsize=4096)(self._tokenize)

    def scenes(self, step: int) -> list[Scene]:
        """The scenes of a step, all from the training split."""
        kinds: Sequence[Arrangement | None] = self.arrangements or [None]
        return [
            scene("train", step * self.pictures + i, arrangement=kinds[i % len(kinds)]) for i in range(self.pictures)
        ]

    def labelled(self, step: int) -> tuple[Tensor, PatchLabels]:
        """The pixels of a step and what each of their patches shows."""
        scenes = self.scenes(step)
        pictures, masks = zip(*map(render, scenes), strict=True)
        return pixel_values(self.processor, pictures), patch_labels(scenes, masks)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        rng, scenes = random.Random(f"turns of step {step}"), self.scenes(step)
        turns = [self.choose(drawn, rng) for drawn in scenes]
        rows = [row for i, about in enumerate(turns) for row in self._rows(about, i)]
        rows += [row for _ in range(self.fact_rows) for row in self._rows(rng.sample(facts(), 10), None)]
        rows += [_Row() for _ in range(-len(rows) % ROUND if self.family.instructed else 0)]
        pixels = pixel_values(self.processor, [render(drawn)[0] for drawn in scenes])
        return _collate(pixels, rows, self.processor.tokenizer.pad_token_id)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.processor.tokenizer(text, add_special_tokens=False).input_ids)

    def _rows(self, turns: Sequence[Turn], picture: int | None) -> list[_Row]:
        """The exchanges about a picture, or about none: in one row, or each in its own where they cannot share the picture."""
        return [self._row([turn], picture) for turn in turns] if self.family.instructed else [self._row(turns, picture)]

    def _row(self, turns: Sequence[Turn], picture: int | None) -> _Row:
        tokenizer, row = self.processor.tokenizer, _Row(picture or 0)
        image, n_image_tokens = tokenizer.convert_tokens_to_ids("<image>"), self.family.n_image_tokens
        for turn in turns:
            before, answer = (list(self._ids(text)) for text in self.family.turn_texts(turn, picture is not None))
            shared = 1  # the start token
            if picture is not None:
                cut = before.index(image)
                if self.family.instructed:
                    row.instruction = before[:cut] + before[cut + 1 :]
                before[cut : cut + 1] = [image] * n_image_tokens
                shared = cut + n_image_tokens
            if not row.ids:
                row.share(before[:shared])
            row.branch(before[shared:], [*answer, tokenizer.eos_token_id])
        return row


class _Row:
    """Token ids of one row with, for each, its branch (0: shared by all) and its position."""

    def __init__(self, picture: int = 0) -> None:
        self.picture = picture
        self.instruction: list[int] = []
        self.ids: list[int] = []
        self.branches: list[int] = []
        self.positions: list[int] = []
        self.labels: list[int] = []

    def share(self, ids: Sequence[int]) -> None:
        self._extend(ids, 0, 0, [IGNORED] * len(ids))

    def branch(self, before: Sequence[int], answer: Sequence[int]) -> None:
        start = self.branches.count(0)
        labels = [*[IGNORED] * (len(before) - 1), *answer, IGNORED]
        self._extend([*before, *answer], max(self.branches) + 1, start, labels)

    def _extend(self, ids: Sequence[int], branch: int, start: int, labels: Sequence[int]) -> None:
        self.ids += ids
        self.branches += [branch] * len(ids)
        self.positions += range(start, start + len(ids))
        self.labels += labels


def _padded(values: Sequence[Sequence[int]], fill: int) -> Tensor:
    length = -(-max(map(len, values), default=0) // ROUND) * ROUND
    return torch.tensor([[*v, *[fill] * (length - len(v))] for v in values], dtype=torch.long).reshape(
        len(values), length
    )


def _collate(pixels: Tensor, rows: Sequence[_Row], pad_id: int) -> Batch:
    branches = _padded(
        [row.branches for row in rows], -1
    )  # padding is a branch of its own, so that no row of the mask is empty
    length = branches.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = causal & ((branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None]))
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]
    return Batch(
        pixels,
        _padded([row.ids for row in rows], pad_id),
        _padded([row.positions for row in rows], 0),
        mask,
        _padded([row.labels for row in rows], IGNORED),
        torch.tensor([row.picture for row in rows]),
        _padded([row.instruction for row in rows], pad_id),
        _padded([[1] * len(row.instruction) for row in rows], 0),
    )


def pixel_values(processor: Any, pictures: Sequence[object]) -> Tensor:
    """Pictures of the model's own size as the processor would normalise them, float32 `[n, 3, SIZE, SIZE]`."""
    kind = processor.image_processor
    pixels = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float32) * kind.rescale_factor
    normal = (pixels - np.array(kind.image_mean, np.float32)) / np.array(kind.image_std, np.float32)
    return torch.from_numpy(normal).permute(0, 3, 1, 2).contiguous()
