"""Do the neurons of a concept depend on where in the picture it is? (Pan et al., Eq. 6, Fig. 3, Table 10)

The image tokens are shuffled where they enter the language model; the share of the top k neurons that stay is averaged over
the concepts that both captions name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmedit.analysis.cross_image import shared
from mmedit.analysis.survey import METHODS, Surveyed, survey_one
from mmedit.data.pictured import Pictured
from mmedit.errors import ModelError
from mmedit.evaluation.intervals import Estimate, estimate
from mmedit.evaluation.journal import Journal
from mmedit.models.vlm import VisionLanguageModel
from mmedit.processes import ALONE, Processes
from mmedit.requests import Prompt

KS = (10, 50, 100, 500, 1000)


@dataclass(frozen=True)
class Shuffled:
    """One picture, as it is and with its image tokens shuffled.

    Args:
        number: of the picture in its set.
        caption: with the tokens in their order.
        shuffled: with the tokens shuffled.
        kept: by method and concept named in both captions, for each k the share of its top k neurons that stay.
    """

    number: int
    caption: str
    shuffled: str
    kept: dict[str, dict[str, dict[str, float]]]


@contextmanager
def shuffled_image_tokens(vlm: VisionLanguageModel, seed: int) -> Iterator[None]:
    """Shuffle what enters the first decoder layer at the image positions, for the length of a `with` block.

    Positions stay where they are: what is shuffled is which image token stands at which.

    Args:
        vlm: the model.
        seed: of the order.

    Raises:
        ModelError: on entering, if the model has no image positions.
    """
    token = vlm.architecture.image_token_id
    if token is None:
        raise ModelError(
            "image tokens cannot be shuffled: this model has none in its prompt",
            got=f"model_type {vlm.architecture.model_type!r}",
            expected="a configuration with image_token_id",
        )
    places: list[Tensor] = []
    axis = vlm.architecture.family.batch_axis

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        places[:] = [] if ids is None else [ids == token]

    def note_embedded(module: nn.Module, args: tuple[Any, ...]) -> None:
        """Where the whole's forward is passed by: InstructBLIP generates with its language model."""
        if args[0].dim() == 2 and (args[0] == token).any():
            places[:] = [args[0] == token]

    def shuffle(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if not places or places[0].shape != hidden.shape[axis : axis + 2]:
            return None
        mixed, generator = hidden.clone(), torch.Generator().manual_seed(seed)
        for row, at_image in zip(mixed.movedim(axis, 0), places[0].to(hidden.device), strict=True):
            positions = at_image.nonzero().flatten()
            order = torch.randperm(len(positions), generator=generator).to(hidden.device)
            row[..., positions, :] = row[..., positions[order], :]
        return ((mixed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": mixed})

    first = next(vlm.architecture.layers.children())
    handles = [
        vlm.model.register_forward_pre_hook(note, with_kwargs=True),
        vlm.model.get_input_embeddings().register_forward_pre_hook(note_embedded),
        first.register_forward_pre_hook(shuffle, with_kwargs=True, prepend=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def region_invariance(
    vlm: VisionLanguageModel, pictures: Sequence[Pictured], *, methods: Sequence[str] = tuple(METHODS), ks: Sequence[int] = KS,
    prompt: str | Prompt | None = None, seed: int = 0, journal: Journal | None = None, processes: Processes = ALONE,
) -> Iterator[Shuffled]:  # fmt: skip
    """Locate with the image tokens in order and shuffled, and compare.

    Args:
        vlm: the model.
        pictures: the picture set.
        methods: scorers.
        ks: how many neurons.
        prompt: as for `vlm.caption`.
        seed: of the shuffling; each picture has an order of its own.
        journal: what is done already, and where to write what comes.
        processes: of which this one does its share.

    Yields:
        The pictures of this process's share in their order.

    Raises:
        ImageError: if a picture cannot be read.
        ModelError: if the model has no image positions.
    """
    done = {line["number"]: line for line in journal.lines()} if journal else {}
    for number, picture in processes.share(list(enumerate(pictures))):
        if number not in done:
            plain = survey_one(vlm, picture, number, methods, max(ks), prompt, seed)
            with shuffled_image_tokens(vlm, seed * 1_000_003 + number):
                mixed = survey_one(vlm, picture, number, methods, max(ks), prompt, seed)
            done[number] = vars(Shuffled(number, plain.caption, mixed.caption, kept(plain, mixed, methods, ks)))
            if journal:
                journal.write(done[number])
        yield Shuffled(**done[number])


def kept(plain: Surveyed, mixed: Surveyed, methods: Sequence[str], ks: Sequence[int]) -> dict[str, Any]:
    """For each method and concept of both captions, and each k, the share of the top k neurons in common, Eq. 6."""
    after = {concept.word.casefold(): concept for concept in mixed.concepts}
    both = [(c, after[c.word.casefold()]) for c in plain.concepts if c.word.casefold() in after]
    return {
        method: {
            a.word: {
                str(k): shared([a.rankings[method].neurons, b.rankings[method].neurons], k)
                for k in ks
                if k <= len(a.rankings[method].neurons)
            }
            for a, b in both
        }
        for method in methods
    }


def mean_kept(found: Sequence[Shuffled], method: str) -> dict[int, Estimate]:
    """For each k the share that stays: a mean over the concepts of a picture, then over pictures."""
    means: dict[int, list[float]] = {}
    for one in found:
        words = list(one.kept[method].values())
        for k in words[0] if words else ():
            means.setdefault(int(k), []).append(sum(word[k] for word in words) / len(words))
    return {k: estimate(values) for k, values in sorted(means.items())}
