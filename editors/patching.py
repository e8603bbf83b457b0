"""Where an editor may work, and the patch of what it has worked out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mmedit.editors.base import Editor, source_of
from mmedit.errors import ModelError
from mmedit.models.architecture import Architecture, WOut
from mmedit.models.images import image_digest
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Site
from mmedit.patches.base import Base, Factors, matrix_digest
from mmedit.patches.live import stack_of
from mmedit.patches.patch import Patch
from mmedit.requests import EditRequest, as_prompt
from mmedit.rewrites import Rewrite


def modules_of(architecture: Architecture, layers: Sequence[int] | None) -> list[WOut]:
    """The W_outs of some layers, each a module of its own that can be edited.

    Raises:
        RequestError: if a layer does not exist.
        ModelError: if one is an expert of a fused mixture, or its weight is quantised or offloaded.
    """
    found = [architecture.require_editable(site) for site in architecture.sites_of(layers)]
    for w_out in found:
        if w_out.fused:
            raise ModelError(
                "an expert of a fused mixture is no module of its own, which this editor needs", where=str(w_out.site),
                do="choose other layers, or the editor MMNeurons",
            )  # fmt: skip
    return found


def patch_of(
    vlm: VisionLanguageModel, editor: Editor, edits: Sequence[Mapping[str, Any]], whole: Mapping[Site, Tensor] | None = None,
    low_rank: Mapping[Site, Factors] | None = None,
) -> Patch:  # fmt: skip
    """A patch that adds matrices, on the unpatched weights of the model.

    Args:
        vlm: the model that the edit was made on.
        editor: the method, with its hyperparameters.
        edits: provenance, one for each request.
        whole: what to add to some W_outs `[d_ffn, d_model]`; the rows that are not 0 are kept, bit for bit.
        low_rank: what to add to others, as factors.

    Raises:
        ModelError: if a weight is quantised or offloaded.
    """
    stack, deltas, base_rows, digests, factors = stack_of(vlm), {}, {}, {}, {}
    for site, matrix in (whole or {}).items():
        changed = matrix.detach().float().cpu()
        units = changed.any(1).nonzero().flatten()
        units = units if len(units) else torch.zeros(1, dtype=torch.long)  # an edit that was not needed
        deltas[site] = units, changed[units]
        base_rows[site] = stack.base_rows(site, units)
    for site, (left, right) in (low_rank or {}).items():
        w_out = vlm.architecture.require_editable(site)
        factors[site] = left.detach().float().cpu().contiguous(), right.detach().float().cpu().contiguous()
        digests[site] = matrix_digest(stack.base_rows(site, torch.arange(w_out.d_ffn)))
    hparams = asdict(editor.hparams)
    return Patch(
        deltas, base_rows, Base.of(vlm), editor.name, hparams, tuple(edits), low_rank=factors, base_digests=digests
    )


def provenance(
    vlm: VisionLanguageModel, request: EditRequest, rewrites: Sequence[Rewrite], **more: Any
) -> dict[str, Any]:
    """What a patch file keeps of a request: the words, the prompt, the pictures' digests, and the tokens where the swap begins."""
    first = rewrites[0]
    start = min(first.places)
    said = (*first.generation.ids, min(vlm.end_ids))
    return {
        "source": source_of(request, first.generation.text), "target": request.target, "prompt": asdict(as_prompt(request.prompt)),
        "images": [image_digest(image) for image in request.images], "source_token_id": said[start], "target_token_id": first.wanted[start],
        **({"forms": dict(request.forms)} if request.forms else {}), **more,
    }  # fmt: skip
