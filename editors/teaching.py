"""Teaching a model wanted answers: the loss on their tokens, its gradients, and descent on it; the weights never change.

What is learnt is added by hooks to what W_outs write, so the model is itself again after every exit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmedit.errors import ModelError
from mmedit.models.architecture import Architecture, WOut, bare_model
from mmedit.models.forcing import forced_inputs
from mmedit.models.gradients import without_gradients_of_weights
from mmedit.models.vlm import VisionLanguageModel, batches
from mmedit.neuron import Site
from mmedit.rewrites import Rewrite

Objective = Callable[["Lesson"], tuple[Tensor, bool]]
"""From a lesson to its part of the loss, and whether the lesson is learnt."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """Some wanted answers to one prompt, as a batch. Places are pairs of a row and a position in the window `[n, 2]`.

    Args:
        inputs: of the decoder: the prompts, and the answers after them.
        window: how many positions at the end count: the text of the prompt after the picture, and the answer.
        taught: the places whose predictions are taught.
        wanted: the tokens to be predicted there `[n]`.
        keys: those of them where a new word begins; there an edit of one position is made.
        prefix: the places before the first taught one of each answer.
        others: all places of an answer that are not taught.
        share: which part of all answers these are.
    """

    inputs: Mapping[str, Any] = field(repr=False)
    window: int
    taught: Tensor
    wanted: Tensor
    keys: Tensor
    prefix: Tensor
    others: Tensor
    share: float

    @property
    def n_answers(self) -> int:
        """How many answers it holds."""
        return int(self.taught[:, 0].max()) + 1

    def per_answer(self, values: Tensor) -> Tensor:
        """The mean over each answer's taught places, of one value for each `[n]`."""
        rows = self.taught[:, 0].to(values.device)
        sums = values.new_zeros(self.n_answers).index_add(0, rows, values)
        return sums / rows.bincount()

    def worst(self, values: Tensor) -> Tensor:
        """The greatest value of each answer, of one for each taught place `[n]`."""
        rows = self.taught[:, 0].to(values.device)
        return torch.stack([values[rows == row].max() for row in range(self.n_answers)])

    def loss(self, logits: Tensor) -> Tensor:
        """−log p of the wanted token at each taught place `[n]`, of logits `[answers, window, n_vocab]`."""
        return nn.functional.cross_entropy(
            at(logits, self.taught).float(), self.wanted.to(logits.device), reduction="none"
        )

    def index(self, values: Tensor, places: Tensor) -> Tensor:
        """Which of all the positions that a layer sees, `[…, d]` in any layout, some places are `[n]`.

        Raises:
            ModelError: if the layer has not a position for each token.
        """
        length, rest = divmod(values.shape[:-1].numel(), self.n_answers)
        if rest or length < self.window:
            raise ModelError(
                "teaching needs one position of the decoder for each token, and this layer has others",
                got=f"{values.shape[:-1].numel()} positions for {self.n_answers} answers", do="choose other layers, or the editor MMNeurons",
            )  # fmt: skip
        rows, positions = places.to(values.device).unbind(1)
        return rows * length + length - self.window + positions


def at(values: Tensor, places: Tensor) -> Tensor:
    """The values at some places `[n, …]`, of `[answers, window, …]`."""
    rows, positions = places.to(values.device).unbind(1)
    return values[rows, positions]


def lessons_of(vlm: VisionLanguageModel, rewrites: Sequence[Rewrite], batch_size: int = 8) -> list[Lesson]:
    """Rewrites as lessons; every answer has the same share in them, however long it is.

    Args:
        vlm: the model.
        rewrites: the answers that it shall give.
        batch_size: answers per lesson.

    Raises:
        ImageError: if a picture cannot be read.
    """
    by_prompt: dict[Any, list[Rewrite]] = {}
    for rewrite in rewrites:
        by_prompt.setdefault(rewrite.prompt, []).append(rewrite)
    chosen = [batch for same in by_prompt.values() for batch in batches(same, batch_size)]
    return [_lesson(vlm, batch, len(batch) / len(rewrites)) for batch in chosen]


def _lesson(vlm: VisionLanguageModel, rewrites: Sequence[Rewrite], share: float) -> Lesson:
    answers = [rewrite.wanted[:-1] for rewrite in rewrites]
    inputs, _ = forced_inputs(vlm, [rewrite.image for rewrite in rewrites], rewrites[0].prompt, answers)
    longest = max(map(len, answers))
    text = 0 if "decoder_input_ids" in inputs else _text_after_picture(vlm, inputs, longest)

    def places(chosen: Callable[[Rewrite], Iterable[int]]) -> Tensor:
        found = [(row, text + place) for row, rewrite in enumerate(rewrites) for place in chosen(rewrite)]
        return torch.tensor(found, dtype=torch.long).reshape(-1, 2)

    return Lesson(
        inputs,
        window=text + 1 + longest,
        taught=places(lambda rewrite: rewrite.places),
        wanted=torch.tensor([rewrite.wanted[place] for rewrite in rewrites for place in rewrite.places]),
        keys=places(lambda rewrite: [place for place in rewrite.places if place - 1 not in rewrite.places]),
        prefix=places(lambda rewrite: range(-text, min(rewrite.places))),
        others=places(lambda rewrite: [place for place in range(len(rewrite.wanted)) if place not in rewrite.places]),
        share=share,
    )


def _text_after_picture(vlm: VisionLanguageModel, inputs: Mapping[str, Any], longest: int) -> int:
    """How many tokens of every prompt stand after the picture, but for the last, which predicts the answer's first."""
    ids = inputs["input_ids"][:, : inputs["input_ids"].shape[1] - longest]
    given = inputs["attention_mask"][:, : ids.shape[1]].bool() & (ids != vlm.architecture.image_token_id)
    run = given.flip(1).long().cumprod(1).sum(1)
    return max(0, int(run.min()) - 1)


def logits_of(vlm: VisionLanguageModel, lesson: Lesson) -> Tensor:
    """What the model predicts in a lesson's window `[answers, window, n_vocab]`; with gradients where they are on."""
    model: Any = bare_model(vlm.reader(lesson.inputs))
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = lesson.window
    logits: Tensor = model(**lesson.inputs, **options).logits
    return logits[:, -lesson.window :]


def divergence(logits: Tensor, before: Tensor) -> Tensor:
    """KL(now ‖ before) of predictions `[n, n_vocab]`, the mean over n; 0 where there are none."""
    now, then = (values.float().log_softmax(-1) for values in (logits, before.to(logits.device)))
    return (now.exp() * (now - then)).sum() / max(1, len(now))


def descend(
    vlm: VisionLanguageModel, parameters: Sequence[Tensor], objective: Objective, lessons: Sequence[Lesson], lr: float, steps: int,
    project: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Adam (Kingma and Ba, 2015) on the sum of an objective over lessons, until all are learnt or the steps are done.

    Args:
        vlm: the model; its own weights take no gradients.
        parameters: what is learnt, in place.
        objective: from a lesson to its part of the loss, and whether it is learnt.
        lessons: all of them are one step; one graph at a time is kept.
        lr: step size.
        steps: at most so many.
        project: called after each step, to keep the parameters where they shall be.
    """
    optimizer = torch.optim.Adam(parameters, lr=lr)
    with without_gradients_of_weights(bare_model(vlm.model)):
        for parameter in parameters:
            parameter.requires_grad_(True)  # also where it hangs in the model, as an adapter's does
        for _ in range(steps):
            optimizer.zero_grad()
            learnt = True
            for lesson in lessons:
                loss, done = objective(lesson)
                loss.backward()  # type: ignore[no-untyped-call]
                learnt &= done
            if learnt:
                return
            optimizer.step()
            if project is not None:
                with torch.no_grad():
                    project()


@contextmanager
def added(architecture: Architecture, changes: Mapping[Site, tuple[Tensor | None, Tensor]]) -> Iterator[None]:
    """Have W_outs write as if rows were added to them, for the length of a `with` block.

    Args:
        architecture: of the model.
        changes: for each site the units `[k]`, or None for all, and the rows to add `[k, d_model]`, which may take gradients.
    """

    def add(units: Tensor | None, rows: Tensor, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        o = args[0] if units is None else args[0][..., units]
        written: Tensor = (o.to(rows.dtype) @ rows).to(output.dtype)
        return output + written

    modules = {site: architecture.w_out(site).module for site in changes}
    with removing(modules[site].register_forward_hook(partial(add, *change)) for site, change in changes.items()):
        yield


@contextmanager
def removing(handles: Iterable[Any]) -> Iterator[None]:
    """Have hooks for the length of a `with` block, in which they are registered one by one."""
    with ExitStack() as hooks:
        for handle in handles:
            hooks.callback(handle.remove)
        yield


def zeros(w_out: WOut, n: int) -> Tensor:
    """Rows to be learnt, `[n, d_model]` in float32 beside the weight."""
    return torch.zeros(n, w_out.d_model, device=w_out.weight.device, requires_grad=True)
