"""What ROME and MEMIT have in common: the key where the word is predicted, and the shift that has the model say another one.

Their key is where a prompt's subject ends. A captioning model has no subject in its prompt: it names what it sees, and
the word is looked up at the position that predicts it. So the key is what enters W_out there, at the position where
mmedit scores neurons (the last token before the word's first).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmedit.editors.patching import modules_of
from mmedit.editors.ranges import check_ranges
from mmedit.editors.statistics import SecondMomentEditor
from mmedit.editors.teaching import Lesson, at, descend, divergence, logits_of, removing, zeros
from mmedit.errors import ModelError
from mmedit.models.architecture import WOut
from mmedit.models.replay import hidden_of
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.patch import Patch

LEARNT = 0.05
"""The loss at which the search for a shift ends, as in ROME's and MEMIT's code."""


@dataclass(frozen=True)
class ValueHparams:
    """Hyperparameters of the search for the value, under the names of ROME's and MEMIT's code."""

    v_num_grad_steps: int = 20
    """Steps of Adam, at most."""
    v_lr: float = 0.5
    """Its step size."""
    v_weight_decay: float = 0.5
    """Weight of ‖δ‖ / ‖v‖²."""
    clamp_norm_factor: float = 4.0
    """‖δ‖ is at most so many times ‖v‖."""
    kl_factor: float = 0.0625
    """Weight of KL(edited ‖ unedited) where the answers go on as they did."""
    n_unrelated: int = 64
    """How many drawings the second moments are taken over, where the user gives no pictures."""
    ridge: float = 0.01
    """What is added to their diagonal, in units of its mean."""
    batch_size: int = 8
    """Pictures per batch."""

    def __post_init__(self) -> None:
        least = {"v_num_grad_steps": 1, "v_weight_decay": 0, "kl_factor": 0, "n_unrelated": 1, "batch_size": 1}
        check_ranges(self, least, {"v_lr": 0, "clamp_norm_factor": 0, "ridge": 0})


class ValueEditor(SecondMomentEditor):
    """An editor that looks for the value that a key shall have."""

    def shift(self, vlm: VisionLanguageModel, lessons: Sequence[Lesson], w_out: WOut, size: float) -> Tensor:
        """The δ `[d_model]` that, added to what a W_out writes at the keys, has the model give the wanted answers.

        It minimises, with Adam,

            mean −log p(wanted)  +  kl_factor · KL(with δ ‖ without δ)  +  v_weight_decay · ‖δ‖ / size²

        in the ball ‖δ‖ ≤ clamp_norm_factor · size. KL is over the places of the answers that are not taught.

        Args:
            vlm: the model.
            lessons: the wanted answers.
            w_out: where δ is added.
            size: the norm of the value as it is.
        """
        hp, before, delta = self.hparams, dict[Lesson, Tensor](), zeros(w_out, 1)

        def objective(lesson: Lesson) -> tuple[Tensor, bool]:
            with _shifted(w_out, lesson, delta):
                logits = logits_of(vlm, lesson)
            now = at(logits, lesson.others)
            kl = divergence(now, before.setdefault(lesson, now.detach()))  # δ is 0 at first
            decay = delta.norm().to(logits.device) / size**2
            loss = lesson.per_answer(lesson.loss(logits)).mean() + hp.kl_factor * kl + hp.v_weight_decay * decay
            return lesson.share * loss, bool(loss < LEARNT)

        def clamp() -> None:
            delta.mul_((hp.clamp_norm_factor * size / delta.norm().clamp_min(1e-30)).clamp_max(1))

        descend(vlm, [delta], objective, lessons, hp.v_lr, hp.v_num_grad_steps, clamp)
        return delta.detach()[0]


def dense(vlm: VisionLanguageModel, layer: int) -> WOut:
    """The one W_out of a layer.

    Raises:
        RequestError: if there is no such layer.
        ModelError: if it is a mixture of experts, or its weight is quantised or offloaded.
    """
    first, *others = modules_of(vlm.architecture, [layer])
    if others or first.gate is not None:
        raise ModelError(
            "this editor writes one memory into a layer, which has several feed-forwards", where=f"layer {layer}",
            do="choose another layer, or the editor MMNeurons",
        )  # fmt: skip
    return first


def at_keys(
    vlm: VisionLanguageModel, lessons: Sequence[Lesson], w_out: WOut, layer: int | None = None
) -> tuple[Tensor, Tensor]:
    """What passes by at the keys of some lessons.

    Args:
        vlm: the model, as it is now.
        lessons: the wanted answers.
        w_out: whose input and output are looked at.
        layer: look at the output of this decoder layer instead of the W_out's.

    Returns:
        o `[n, d_ffn]` and the output `[n, d_model]`, in double precision on the weight's device.
    """
    giving: Any = w_out.module if layer is None else list(vlm.architecture.layers.children())[layer]
    keys, values, seen = list[Tensor](), list[Tensor](), dict[str, Tensor]()

    def see_input(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen["o"] = args[0].detach()

    def see_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen["value"] = hidden_of(output).detach()

    seeing = (w_out.module.register_forward_pre_hook, see_input), (giving.register_forward_hook, see_output)
    with removing(register(see) for register, see in seeing), torch.no_grad():
        for lesson in lessons:
            logits_of(vlm, lesson)
            for name, found in (("o", keys), ("value", values)):
                passing = seen[name].flatten(0, -2)[lesson.index(seen[name], lesson.keys)]
                found.append(passing.to(w_out.weight.device, torch.float64))
    return torch.cat(keys), torch.cat(values)


def live(vlm: VisionLanguageModel, patch: Patch | None) -> AbstractContextManager[Any]:
    """Have what is worked out so far live on the model for the length of a `with` block."""
    return nullcontext() if patch is None else patch.applied(vlm)


def _shifted(w_out: WOut, lesson: Lesson, delta: Tensor) -> AbstractContextManager[Any]:
    """Have a W_out write δ on top of what it writes, at the keys of a lesson."""

    def shift(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        index = lesson.index(output, lesson.keys)
        return output.flatten(0, -2).index_add(0, index, delta.to(output).expand(len(index), -1)).reshape(output.shape)

    return removing([w_out.module.register_forward_hook(shift)])
