"""Contribution scores (Pan et al., Eq. 2), with no gradients and no second forward pass.

The score of neuron i of layer l for token t is s = o[l,i] · (W_out[l][i] · W_U[:,t]), with o taken where t is predicted.
Only the columns of W_U that are asked for are multiplied, so scoring is one read of each W_out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmedit.models.architecture import Architecture
from mmedit.models.product import product
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Site
from mmedit.scorers.base import Scorer
from mmedit.sightings import Sighting


class Contribution(Scorer):
    """How much each neuron adds to the word's token by its own output vector (Pan et al., Eq. 2)."""

    name = "contribution"
    folds = True

    def options(self, architecture: Architecture, **options: Any) -> dict[str, Any]:
        architecture.require_readable(architecture.sites_of(options.get("layers")))  # before anything is captioned
        return super().options(architecture, **options)

    def scores(self, vlm: VisionLanguageModel, seen: Sequence[Sighting]) -> dict[Site, Tensor]:
        architecture, scores = vlm.architecture, {}
        with torch.inference_mode():
            columns, words = _distinct(architecture.w_u[[s.occurrence.token_id for s in seen]].float())
            for site in seen[0].activations:
                o = torch.stack([s.activations[site] for s in seen])
                if isinstance(site.expert, int) and not o.any():  # an expert that no sighting went to
                    scores[site] = torch.zeros(o.shape)
                    continue
                matrix = architecture.w_out(site).matrix
                folded = [s.directions[site] for s in seen if s.directions]
                directions, which = _distinct(torch.stack(folded)) if folded else (columns, words)
                scores[site] = _products(o, matrix, directions, which).cpu()
        return scores

    def label(self, architecture: Architecture, sighting: Sighting) -> str:
        exact = architecture.exact(sighting.activations, folded=bool(sighting.directions))
        return self.name + {True: "", False: ", approximate", None: ", unchecked"}[exact]


def contribution(o: Tensor, w_out: Tensor, directions: Tensor) -> Tensor:
    """Contribution scores, Eq. 2.

    Args:
        o: activations `[n, d_ffn]`.
        w_out: `[d_ffn, d_model]`.
        directions: for each activation vector the direction that writes its token, a column of W_U `[n, d_model]`.

    Returns:
        Scores `[n, d_ffn]` in float32.

    Example:
        >>> contribution(torch.tensor([[2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 5.0]]))
        tensor([[6.]])
    """
    return _products(o, w_out, *_distinct(directions))


def _products(o: Tensor, w_out: Tensor, directions: Tensor, which: Tensor) -> Tensor:
    """Contribution scores, where each activation vector says by a number which direction is its own."""
    scores: Tensor = o.to(w_out.device).float() * product(directions, w_out)[which.to(w_out.device)]
    return scores


def _distinct(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Each direction once, in order, and which one every row was: a word that is said often is multiplied once."""
    distinct, which = torch.unique(directions, dim=0, return_inverse=True)
    return distinct, which
