"""MEMIT (Meng et al., ICLR 2023, arXiv 2210.07229): many keys and values at once, written into several layers.

Each request says what the hidden state z = h + δ after the last of the layers shall be where its word is predicted
(`mmedit.editors.values`). Layer by layer, first to last, with the keys K `[d_ffn, n]` as they are with the layers before
edited, and R `[n, d_model]` what is still missing, shared among the layers that are left (Eq. 14, 19 and 20; here with
neurons as rows):

    Δ = (λC + KKᵀ)⁻¹ K R / (layers left).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmedit.editors.base import Requests, apply_to_model, requests_of
from mmedit.editors.patching import patch_of, provenance
from mmedit.editors.ranges import check, check_ranges
from mmedit.editors.teaching import Lesson, lessons_of
from mmedit.editors.values import ValueEditor, ValueHparams, at_keys, dense, live
from mmedit.errors import ModelError
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.patch import Patch
from mmedit.rewrites import by_form, rewrites_of

DEPTHS = 3 / 28, 8 / 28
"""How deep the first and the last of the paper's layers of GPT-J lie."""


@dataclass(frozen=True)
class MEMITHparams(ValueHparams):
    """Hyperparameters of MEMIT; the defaults are those of the paper's GPT-J (`hparams/MEMIT` of its code)."""

    v_num_grad_steps: int = 25
    """Steps of Adam, at most."""
    clamp_norm_factor: float = 0.75
    """‖δ‖ is at most so many times ‖h‖."""
    layers: list[int] = field(default_factory=lambda: [3, 4, 5, 6, 7, 8])
    """The decoder layers to be edited, from 0, in order."""
    mom2_update_weight: float = 15000.0
    """λ, how much C counts against the keys."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"layers": 0}, {"mom2_update_weight": 0})
        check(self, "layers", sorted(set(self.layers)) == self.layers, "distinct layers in order")


class MEMIT(ValueEditor):
    """Write the keys and values of all requests together, spread over several layers.

    Every picture in which a request's word is predicted is a key of its own; δ is the same for all keys of a
    request, of which each form of a source is one.

    Args:
        hparams: `MEMITHparams`; the paper's values when None.
        unrelated: pictures that the edits are not about, for C; drawings when None.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> editor = mmedit.editors.MEMIT.from_hparams("iconworld-llava")
        >>> patch = editor.execute(vlm, mmedit.EditRequest(picture, things[0].noun, "kite"))
        >>> [site.layer for site in patch.low_rank] == editor.hparams.layers
        True
    """

    name = "MEMIT"
    Hparams = MEMITHparams
    hparams: MEMITHparams

    @classmethod
    def auto(cls, vlm: VisionLanguageModel, **given: Any) -> MEMITHparams:
        """The paper's values, in layers that lie as deep."""
        first, last = (round(depth * vlm.architecture.n_layers) for depth in DEPTHS)
        return MEMITHparams(**({"layers": list(range(first, last + 1))} | given))

    @torch.inference_mode(False)
    def execute(self, vlm: VisionLanguageModel, request: Requests) -> Patch:
        """Work out Δ of every layer; the model is the same at the end as at the start.

        Args:
            vlm: the model.
            request: the edit, or several that are solved together.

        Returns:
            The patch, not yet live, in each layer of a rank of the number of keys.

        Raises:
            RequestError: if the model does not say a source, or there is no such layer.
            ModelError: if a layer is a mixture of experts, does not write straight into the residual stream, or cannot be edited
                in place.
        """
        hp, edits, lessons, wanted = self.hparams, list[dict[str, Any]](), list[Lesson](), list[Tensor]()
        w_outs = [dense(vlm, layer) for layer in hp.layers]
        _require_straight(vlm, w_outs)
        moments, last = self.moments(vlm, w_outs), w_outs[-1]
        requests = requests_of(request)
        for one in (part for whole in requests for part in by_form(vlm, whole, hp.batch_size)):
            rewrites = rewrites_of(vlm, one, hp.batch_size, among=requests)
            taught = lessons_of(vlm, rewrites, hp.batch_size)
            _, h = at_keys(vlm, taught, last, last.layer)
            wanted.append(h + self.shift(vlm, taught, last, float(h.mean(0).norm())).to(h))
            lessons += taught
            edits.append(provenance(vlm, one, rewrites))
        z, factors, patch = torch.cat(wanted), {}, None
        for left, w_out in zip(range(len(w_outs), 0, -1), w_outs, strict=True):
            with live(vlm, patch):
                keys, h = at_keys(vlm, lessons, w_out, last.layer)
            written = update(keys, self.regular(moments[w_out.site]), hp.mom2_update_weight)
            factors[w_out.site] = written, (z.to(h) - h) / left
            patch = patch_of(vlm, self, edits, low_rank=factors)
        assert patch is not None
        return patch


def update(keys: Tensor, c: Tensor, weight: float) -> Tensor:
    """(λC + KKᵀ)⁻¹K, the directions in which keys are written `[d_ffn, n]`.

    Args:
        keys: Kᵀ `[n, d_ffn]`, in double precision.
        c: second moments `[d_ffn, d_ffn]`.
        weight: λ.
    """
    written: Tensor = torch.linalg.solve(weight * c + keys.T @ keys, keys.T)
    return written


def _require_straight(vlm: VisionLanguageModel, w_outs: Any) -> None:
    """What is missing of a hidden state is what W_outs shall write, which holds only if they write straight into it."""
    if vlm.architecture.exact([w_out.site for w_out in w_outs], folded=False) is False:
        raise ModelError(
            "MEMIT needs W_outs that write straight into the residual stream", got=f"a norm or a scale in between, in model_type {vlm.architecture.model_type!r}",
            do="use ROME, or another editor",
        )  # fmt: skip


def apply_memit_to_model(
    model: Any, tok_or_processor: Any, requests: Any, hparams: Any, copy: bool = False, return_orig_weights: bool = False,
    keep_original_weight: bool = False, **kw: Any,
) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
    """ROME's function face of `MEMIT`; arguments, results and errors as for `mmedit.editors.base.apply_to_model`."""
    return apply_to_model(
        MEMIT, model, tok_or_processor, requests, hparams, copy, return_orig_weights, keep_original_weight
    )
