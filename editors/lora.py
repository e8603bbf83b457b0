"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) on W_outs, trained with PEFT on the wanted answers.

Each W_out is given a product of two thin matrices, which alone are learnt with the masked loss of `mmedit.editors.ft`:

    Δ = α/r · AᵀBᵀ,   A [r, d_ffn] random at first, B [d_model, r] zero.

The adapter is gone afterwards; the patch holds its factors as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from mmedit.editors.base import Editor, Requests, apply_to_model, requests_of
from mmedit.editors.ft import LEARNT
from mmedit.editors.patching import modules_of, patch_of, provenance
from mmedit.editors.ranges import check, check_ranges
from mmedit.editors.teaching import Lesson, descend, lessons_of, logits_of
from mmedit.errors import ModelError
from mmedit.models.architecture import WOut, bare_model
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Site
from mmedit.patches.base import Factors
from mmedit.patches.patch import Patch
from mmedit.rewrites import rewrites_of

ADAPTER = "mmedit"


@dataclass(frozen=True)
class LoRAHparams:
    """Hyperparameters of LoRA; the defaults are EasyEdit's for Llama (`hparams/LoRA/llama-7b.yaml`), but for the modules."""

    layers: list[int] | None = None
    """Decoder layers whose W_outs get an adapter, from 0; all when empty."""
    rank: int = 8
    """r."""
    lora_alpha: float = 32.0
    """α."""
    lora_dropout: float = 0.1
    """The share of what enters an adapter that is dropped while it is trained."""
    num_steps: int = 70
    """Steps of Adam, at most."""
    lr: float = 5e-3
    """Its step size."""
    seed: int = 0
    """Of A at first, and of what is dropped."""
    batch_size: int = 8
    """Pictures per batch; all of them are one step."""

    def __post_init__(self) -> None:
        least = {"layers": 0, "rank": 1, "num_steps": 1, "seed": 0, "batch_size": 1, "lora_dropout": 0}
        check_ranges(self, least, {"lr": 0, "lora_alpha": 0})
        check(self, "lora_dropout", self.lora_dropout < 1, "below 1")


class LoRA(Editor):
    """Train an adapter of W_outs on the answers that all requests want.

    Args:
        hparams: `LoRAHparams`; EasyEdit's values when None.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> editor = mmedit.editors.LoRA.from_hparams("iconworld-llava")
        >>> patch = editor.execute(vlm, mmedit.EditRequest(picture, things[0].noun, "kite"))
        >>> {right.shape[0] for _, right in patch.low_rank.values()} == {editor.hparams.rank}
        True
    """

    name = "LoRA"
    Hparams = LoRAHparams
    hparams: LoRAHparams

    @torch.inference_mode(False)
    def execute(self, vlm: VisionLanguageModel, request: Requests) -> Patch:
        """Train the adapter and read it out; the model is the same at the end as at the start.

        Args:
            vlm: the model.
            request: the edit, or several that are learnt together.

        Returns:
            The patch, not yet live, of rank r in each layer.

        Raises:
            RequestError: if the model does not say a source, or there is no such layer.
            ModelError: if a layer is a fused mixture of experts, or a weight cannot be edited in place.
        """
        hp, w_outs = self.hparams, modules_of(vlm.architecture, self.hparams.layers)
        requests = requests_of(request)
        wanted = [(one, rewrites_of(vlm, one, hp.batch_size, among=requests)) for one in requests]
        lessons = lessons_of(vlm, [rewrite for _, rewrites in wanted for rewrite in rewrites], hp.batch_size)

        def objective(lesson: Lesson) -> tuple[Tensor, bool]:
            loss = lesson.per_answer(lesson.loss(logits_of(vlm, lesson))).mean()
            return lesson.share * loss, bool(loss < LEARNT)

        with adapter(vlm, w_outs, hp) as layers:
            for layer in layers.values():
                layer.lora_dropout.train()
            weights = [part[ADAPTER].weight for layer in layers.values() for part in (layer.lora_A, layer.lora_B)]
            descend(vlm, weights, objective, lessons, hp.lr, hp.num_steps)
            factors = {site: factors_of(layer) for site, layer in layers.items()}
        return patch_of(vlm, self, [provenance(vlm, one, rewrites) for one, rewrites in wanted], low_rank=factors)


@contextmanager
def adapter(vlm: VisionLanguageModel, w_outs: Sequence[WOut], hp: LoRAHparams) -> Iterator[dict[Site, Any]]:
    """Have W_outs wrapped in PEFT's layers for the length of a `with` block; what PEFT does to the model is undone on any exit.

    Args:
        vlm: the model.
        w_outs: which.
        hp: rank, α, dropout and seed; the random numbers of others are not touched.

    Yields:
        The layers by site.

    Raises:
        ModelError: if the model has an adapter of its own, which PEFT would change.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model: Any = bare_model(vlm.model)
    if hasattr(model, "peft_config"):
        raise ModelError(
            "this model has an adapter already",
            got=", ".join(model.peft_config),
            do="merge it into the weights, or unload it",
        )
    config = LoraConfig(
        r=hp.rank, lora_alpha=hp.lora_alpha, lora_dropout=hp.lora_dropout, target_modules=[w_out.path for w_out in w_outs],
        fan_in_fan_out=all(isinstance(w_out.module, Conv1D) for w_out in w_outs),
    )  # fmt: skip
    asking = {parameter: parameter.requires_grad for parameter in model.parameters()}
    before = dict(model.__dict__)
    devices = [w_out.weight.device for w_out in w_outs if w_out.weight.is_cuda]
    try:
        with torch.random.fork_rng(dict.fromkeys(devices)):
            torch.manual_seed(hp.seed)
            inject_adapter_in_model(config, model, ADAPTER)
            yield {w_out.site: model.get_submodule(w_out.path) for w_out in w_outs}
    finally:
        for w_out in w_outs:
            model.set_submodule(w_out.path, w_out.module)
        for name in model.__dict__.keys() - before.keys():
            delattr(model, name)
        model.__dict__.update(before)
        for parameter, asked in asking.items():
            parameter.requires_grad_(asked)


def factors_of(layer: Any) -> Factors:
    """What an adapter's layer adds to its W_out, as `[d_ffn, r]` and `[r, d_model]`."""
    a, b = (part[ADAPTER].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
    return layer.scaling[ADAPTER] * a.T, b.T


def apply_lora_to_model(
    model: Any, tok_or_processor: Any, requests: Any, hparams: Any, copy: bool = False, return_orig_weights: bool = False,
    keep_original_weight: bool = False, **kw: Any,
) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
    """ROME's function face of `LoRA`; arguments, results and errors as for `mmedit.editors.base.apply_to_model`."""
    return apply_to_model(
        LoRA, model, tok_or_processor, requests, hparams, copy, return_orig_weights, keep_original_weight
    )
