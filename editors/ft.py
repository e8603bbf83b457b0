"""Fine-tuning of one W_out on the wanted answers: the baseline of ROME's paper, with the masked loss of FT-M.

The loss is −log p of the tokens to be said, each after the tokens before it, and of nothing else (FT-M: Zhang et al., 2024,
arXiv 2401.01286); no number of the weight may move by more than ε, as in FT-L (Zhu et al., 2020, arXiv 2012.00363):

    minimise  mean −log p(wanted)   subject to   ‖ΔW‖∞ ≤ ε,

by steps of Adam, each followed by a projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmedit.editors.base import Editor, Requests, apply_to_model, requests_of
from mmedit.editors.patching import modules_of, patch_of, provenance
from mmedit.editors.ranges import check_ranges
from mmedit.editors.teaching import Lesson, added, descend, lessons_of, logits_of, zeros
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.patch import Patch
from mmedit.rewrites import rewrites_of

LEARNT = 0.01
"""The loss at which fine-tuning ends, as in ROME's and EasyEdit's code."""
DEPTH = 21 / 28
"""How deep the layer of GPT-J lies that ROME's paper fine-tunes."""


@dataclass(frozen=True)
class FTHparams:
    """Hyperparameters of fine-tuning; the defaults are those of ROME's paper for GPT-J."""

    layer: int = 21
    """The decoder layer to be fine-tuned, from 0."""
    num_steps: int = 25
    """Steps of Adam, at most."""
    lr: float = 5e-4
    """Its step size."""
    norm_constraint: float | None = 5e-5
    """ε: by how much a number of the weight may move; without a limit when empty, as EasyEdit has it for Llama."""
    batch_size: int = 8
    """Pictures per batch; all of them are one step."""

    def __post_init__(self) -> None:
        check_ranges(self, {"layer": 0, "num_steps": 1, "batch_size": 1}, {"lr": 0, "norm_constraint": 0})


class FT(Editor):
    """Fine-tune one W_out on the answers that all requests want.

    Args:
        hparams: `FTHparams`; the paper's values when None.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> patch = mmedit.editors.FT.from_hparams("iconworld-llava").execute(vlm, mmedit.EditRequest(picture, things[0].noun, "kite"))
        >>> len(patch.sites)
        1
    """

    name = "FT"
    Hparams = FTHparams
    hparams: FTHparams

    @classmethod
    def auto(cls, vlm: VisionLanguageModel, **given: Any) -> FTHparams:
        """The paper's values, in a layer that lies as deep."""
        return FTHparams(**({"layer": round(DEPTH * vlm.architecture.n_layers)} | given))

    @torch.inference_mode(False)
    def execute(self, vlm: VisionLanguageModel, request: Requests) -> Patch:
        """Work out ΔW; the model is the same at the end as at the start.

        Args:
            vlm: the model.
            request: the edit, or several that are learnt together.

        Returns:
            The patch, not yet live: every row of the W_out that has moved.

        Raises:
            RequestError: if the model does not say a source, or there is no such layer.
            ModelError: if the layer is a fused mixture of experts, or its weight cannot be edited in place.
        """
        hp, w_outs = self.hparams, modules_of(vlm.architecture, [self.hparams.layer])
        requests = requests_of(request)
        wanted = [(one, rewrites_of(vlm, one, hp.batch_size, among=requests)) for one in requests]
        lessons = lessons_of(vlm, [rewrite for _, rewrites in wanted for rewrite in rewrites], hp.batch_size)
        deltas = {w_out.site: zeros(w_out, w_out.d_ffn) for w_out in w_outs}

        def objective(lesson: Lesson) -> tuple[Tensor, bool]:
            with added(vlm.architecture, {site: (None, delta) for site, delta in deltas.items()}):
                loss = lesson.per_answer(lesson.loss(logits_of(vlm, lesson))).mean()
            return lesson.share * loss, bool(loss < LEARNT)

        def clamp() -> None:
            for delta in deltas.values() if hp.norm_constraint is not None else ():
                delta.clamp_(-hp.norm_constraint, hp.norm_constraint)  # type: ignore[operator]

        descend(vlm, [*deltas.values()], objective, lessons, hp.lr, hp.num_steps, clamp)
        return patch_of(vlm, self, [provenance(vlm, one, rewrites) for one, rewrites in wanted], whole=deltas)


def apply_ft_to_model(
    model: Any, tok_or_processor: Any, requests: Any, hparams: Any, copy: bool = False, return_orig_weights: bool = False,
    keep_original_weight: bool = False, **kw: Any,
) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
    """ROME's function face of `FT`; arguments, results and errors as for `mmedit.editors.base.apply_to_model`."""
    return apply_to_model(
        FT, model, tok_or_processor, requests, hparams, copy, return_orig_weights, keep_original_weight
    )
