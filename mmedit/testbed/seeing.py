"""Teaching a model to see: what each patch of a picture shows, and the heads that must tell it from the model's features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmedit.testbed.checkpoint import N_PATCHES, PATCH
from mmedit.testbed.world import COLOURS, GROUNDS, NOUNS, SIZE, Scene


class PatchLabels(NamedTuple):
    """What pictures show, patch by patch."""

    nouns: Tensor  # index into ("nothing", *NOUNS), int64 [n, patches]
    colours: Tensor  # index into ("nothing", *COLOURS), int64 [n, patches]
    grounds: Tensor  # index into GROUNDS, int64 [n]


def patch_labels(scenes: Sequence[Scene], masks: Sequence[Sequence[np.ndarray]]) -> PatchLabels:
    """What each patch shows, for teaching a model to see.

    Args:
        scenes: what is shown.
        masks: the regions of the things of each scene, as `render` gives them.
    """
    grid = SIZE // PATCH
    nouns, colours = (torch.zeros(len(scenes), N_PATCHES, dtype=torch.long) for _ in range(2))
    for i, (drawn, regions) in enumerate(zip(scenes, masks, strict=True)):
        for thing, mask in zip(drawn.things, regions, strict=True):
            share = mask.reshape(grid, PATCH, grid, PATCH).mean((1, 3)).reshape(-1)
            covered = torch.from_numpy(share > 0.25)
            nouns[i, covered] = 1 + NOUNS.index(thing.noun)
            colours[i, covered] = 1 + list(COLOURS).index(thing.colour)
    return PatchLabels(nouns, colours, torch.tensor([list(GROUNDS).index(drawn.ground) for drawn in scenes]))


class PatchHeads(nn.Module):
    """Name what each patch shows, from tokens that answer for a square of patches each."""

    def __init__(self, n_tokens: int, width: int) -> None:
        super().__init__()
        self.side = math.isqrt(N_PATCHES // n_tokens)
        self.nouns = nn.Linear(width, self.side**2 * (1 + len(NOUNS)))
        self.colours = nn.Linear(width, self.side**2 * (1 + len(COLOURS)))
        self.grounds = nn.Linear(width, len(GROUNDS))

    def forward(self, features: Tensor, labels: PatchLabels) -> Tensor:
        """Cross-entropy of thing and colour in each patch, and of the ground of the whole picture."""
        loss = nn.functional.cross_entropy
        of_noun = self.nouns(features).unflatten(-1, (self.side**2, -1))
        of_colour = self.colours(features).unflatten(-1, (self.side**2, -1))
        return (
            loss(of_noun.flatten(0, 2), self._by_token(labels.nouns).flatten())
            + loss(of_colour.flatten(0, 2), self._by_token(labels.colours).flatten())
            + 0.1 * loss(self.grounds(features.mean(1)), labels.grounds)
        )

    def _by_token(self, labels: Tensor) -> Tensor:
        """Labels `[n, patches]` as `[n, tokens, patches of the token]`."""
        across = math.isqrt(N_PATCHES) // self.side
        squares = labels.reshape(-1, across, self.side, across, self.side).transpose(2, 3)
        return squares.reshape(len(labels), across**2, self.side**2)
