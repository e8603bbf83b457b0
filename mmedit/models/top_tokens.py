"""The words that neurons stand for: the tokens that their rows of W_out write most strongly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmedit.models.architecture import Architecture
from mmedit.models.product import VALUES, product
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron, by_site

ROWS = 128  # of W_out, at least, that are multiplied with all of W_U at a time


def top_tokens(vlm: VisionLanguageModel, neurons: Sequence[Neuron], n_tokens: int = 10) -> list[tuple[str, ...]]:
    """The tokens that each neuron writes most strongly: the greatest entries of its row of W_out · W_U.

    Args:
        vlm: the model.
        neurons: which neurons.
        n_tokens: how many tokens of each.

    Returns:
        For each neuron its tokens, strongest first.

    Raises:
        ModelError: if W_U or a neuron's W_out is offloaded.
    """
    if not neurons or n_tokens == 0:
        return [() for _ in neurons]
    step = max(ROWS, VALUES // vlm.architecture.n_vocab)
    parts = [neurons[start : start + step] for start in range(0, len(neurons), step)]
    best = torch.cat([_top_ids(vlm.architecture, part, n_tokens) for part in parts])
    distinct = torch.unique(best)
    texts = dict(zip(distinct.tolist(), vlm.tokenizer.batch_decode(distinct[:, None]), strict=True))
    return [tuple(map(texts.__getitem__, ids)) for ids in best.tolist()]


def _top_ids(architecture: Architecture, neurons: Sequence[Neuron], n_tokens: int) -> Tensor:
    """The same as numbers `[n_neurons, n_tokens]`."""
    sites, rows = by_site(neurons), torch.empty(len(neurons), architecture.d_model)
    architecture.require_readable(sites)
    for site, places in sites.items():
        rows[places] = architecture.w_out(site).rows(torch.tensor([neurons[place].unit for place in places])).float()
    with torch.inference_mode():
        return product(rows, architecture.w_u).topk(min(n_tokens, architecture.n_vocab)).indices
