"""An edited model beside the unedited one: a copy that shares every weight but those that a patch changes."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

from torch import nn

from mmedit.models.architecture import architecture_of, bare_model
from mmedit.patches.live import Stack
from mmedit.patches.patch import Patch


def edited_view(vlm: Any, patch: Patch) -> nn.Module:
    """A model with a patch live on it, made of another's weights; the other is not touched, now or when either is run.

    The view is a model of the same class with modules of its own, so calls, generate and hooks work as on any model, in any
    thread. All tensors but the patched W_outs are the same ones in both; a later change of one of them is seen in both.

    Args:
        vlm: a VisionLanguageModel or a bare transformers model.
        patch: row-sparse or low-rank.

    Returns:
        The view; `patch.revert(view)` takes the patch out of it again.

    Raises:
        BaseMismatchError: if the model is not the one that the patch was made on.
        ModelError: if the weights are quantised or offloaded.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, _, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
        >>> patch = editor.execute(vlm, mmedit.EditRequest(picture, things[0].noun, "kite"))
        >>> edited = mmedit.VisionLanguageModel(edited_view(vlm, patch), vlm.processor)
        >>> ["kite" in each.caption(picture)[0] for each in (vlm, edited)]
        [False, True]
    """
    model, architecture = bare_model(vlm), architecture_of(vlm)
    Stack.of(vlm).check(patch)
    own = {id(architecture.w_out(site).weight) for site in patch.sites}
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers()) if id(tensor) not in own}
    view: nn.Module = copy.deepcopy(model, shared)  # what the memo holds is not copied
    patch.apply(view)
    return view
