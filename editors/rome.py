"""ROME (Meng et al., NeurIPS 2022, arXiv 2202.05262): a W_out as a memory of keys and values, into which one more pair is written.

Of all matrices that give the key k* the value v*, it takes the one that changes what W_out does to other keys least,
measured by their second moments C (Eq. 2; here with neurons as rows, and W_out's bias part of the values):

    Δ = C⁻¹k* (v* − k*W)ᵀ / (k*ᵀC⁻¹k*),

where v* = k*W + δ is the value for which the model says the target (Eq. 4; `mmedit.editors.values`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmedit.editors.base import Requests, apply_to_model, requests_of
from mmedit.editors.patching import patch_of, provenance
from mmedit.editors.ranges import check_ranges
from mmedit.editors.teaching import lessons_of
from mmedit.editors.values import ValueEditor, ValueHparams, at_keys, dense, live
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.patch import Patch
from mmedit.rewrites import by_form, rewrites_of

DEPTH = 17 / 48
"""How deep the paper's layer of GPT-2 XL lies."""


@dataclass(frozen=True)
class ROMEHparams(ValueHparams):
    """Hyperparameters of ROME; the defaults are those of the paper's GPT-2 XL (`hparams/ROME/gpt2-xl.json` of its code)."""

    layer: int = 17
    """The decoder layer to be edited, from 0."""
    mom2_adjustment: bool = True
    """Whether C counts; without it, C is the identity, as EasyEdit has it for Llama."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"layer": 0}, {})


class ROME(ValueEditor):
    """Write one key and value for each request into the W_out of one layer, one request after the other.

    k* is the mean over the request's pictures, and v* serves them all; each form of a source is a request of its own. One that
    comes later is worked out with the earlier ones live; the patch is all of them.

    Args:
        hparams: `ROMEHparams`; the paper's values when None.
        unrelated: pictures that the edits are not about, for C; drawings when None.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> patch = mmedit.editors.ROME.from_hparams("iconworld-llava").execute(vlm, mmedit.EditRequest(picture, things[0].noun, "kite"))
        >>> [tuple(factor.shape) for factor in patch.low_rank[patch.sites[0]]]
        [(512, 1), (1, 128)]
    """

    name = "ROME"
    Hparams = ROMEHparams
    hparams: ROMEHparams

    @classmethod
    def auto(cls, vlm: VisionLanguageModel, **given: Any) -> ROMEHparams:
        """The paper's values, in a layer that lies as deep."""
        return ROMEHparams(**({"layer": round(DEPTH * vlm.architecture.n_layers)} | given))

    @torch.inference_mode(False)
    def execute(self, vlm: VisionLanguageModel, request: Requests) -> Patch:
        """Work out Δ; the model is the same at the end as at the start.

        Args:
            vlm: the model.
            request: the edit, or several that become one patch.

        Returns:
            The patch, not yet live, of rank one for each request.

        Raises:
            RequestError: if the model does not say the source, or there is no such layer.
            ModelError: if the layer is a mixture of experts, or its weight cannot be edited in place.
        """
        w_out, n = dense(vlm, self.hparams.layer), self.hparams.batch_size
        edits, factors = list[dict[str, Any]](), list[tuple[Tensor, Tensor]]()
        c = self.regular(self.moments(vlm, [w_out])[w_out.site]) if self.hparams.mom2_adjustment else None
        requests = requests_of(request)
        parts = [part for whole in requests for part in by_form(vlm, whole, n)]
        wanted = [(one, rewrites_of(vlm, one, n, among=requests)) for one in parts]
        patch = None
        for one, rewrites in wanted:
            lessons = lessons_of(vlm, rewrites, n)
            with live(vlm, patch):
                k, v = (seen.mean(0) for seen in at_keys(vlm, lessons, w_out))
                delta = self.shift(vlm, lessons, w_out, float(v.norm()))
            factors.append((update(k, c), delta))
            edits.append(provenance(vlm, one, rewrites))
            left, right = (torch.stack(parts) for parts in zip(*factors, strict=True))
            patch = patch_of(vlm, self, edits, low_rank={w_out.site: (left.T, right)})
        assert patch is not None
        return patch


def update(k: Tensor, c: Tensor | None) -> Tensor:
    """C⁻¹k / (kᵀC⁻¹k): the direction in which a key is written, of which k itself has exactly 1.

    Args:
        k: the key `[d_ffn]`, in double precision.
        c: second moments `[d_ffn, d_ffn]`; the identity when None.

    Example:
        >>> update(torch.tensor([3.0, 4.0]), None)
        tensor([0.1200, 0.1600])
    """
    u = k if c is None else torch.linalg.solve(c, k)
    return u / (k @ u)


def apply_rome_to_model(
    model: Any, tok_or_processor: Any, requests: Any, hparams: Any, copy: bool = False, return_orig_weights: bool = False,
    keep_original_weight: bool = False, **kw: Any,
) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
    """ROME's function face; arguments, results and errors as for `mmedit.editors.base.apply_to_model`."""
    return apply_to_model(
        ROME, model, tok_or_processor, requests, hparams, copy, return_orig_weights, keep_original_weight
    )
