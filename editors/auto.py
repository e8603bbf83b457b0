"""Hyperparameters of Algorithm 1 from the model itself, for models that no tuned file is for.

Algorithm 1 is linear in its step. A step of 1 would move the row of neuron i by Δwᵢ; if nothing else in the model reacts,
that reaches the logits along the directions d of `mmedit.models.readout.directions`, so that with a step lr

    logit(target) − logit(source)  grows by  lr · Σᵢ oᵢ · Δwᵢ·(d1 − d0)  =  lr · ε · Σᵢ oᵢ² · (v1 − v0)·(d1 − d0)  for β = 0.

So a few drawings show which step a model needs. It captions them; for each noun that it says, and each other noun of its
captions in its place, the right side is to be `OVERTURN` times what the source leads by. The median of these steps is lr:
the scales of the activations, of W_U's rows and of the final norm are in it, and so is how sure the model is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmedit.concepts import Occurrence
from mmedit.errors import HparamsError, ModelError
from mmedit.locate import rank
from mmedit.models.readout import Head, directions
from mmedit.models.vlm import Generation, VisionLanguageModel, batches
from mmedit.neuron import NeuronRanking
from mmedit.nouns import noun_tokens
from mmedit.sightings import sightings
from mmedit.testbed.world import NOUNS, render, scene
from mmedit.trace import Trace

if TYPE_CHECKING:
    from mmedit.editors.mm_neurons import MMNeuronsHparams

OVERTURN = 2.5
"""How far an edit is to go, in units of what the source leads by: in the middle of what tuning on validation swaps came to
for IconWorld's models, 1.5 (mPLUG-Owl2), 3.3 (LLaVA) and 3.4 (InstructBLIP)."""
FIRST = 2 * 10**6  # drawings beyond the numbers that other uses of the validation split begin with

Entered = Mapping[nn.Module, Tensor]


def algorithm1_hparams(vlm: VisionLanguageModel, **given: Any) -> MMNeuronsHparams:
    """Hyperparameters of Algorithm 1 for a model, from its captions of twenty drawings.

    `lr` is the step of this module's equation. `beta` is 0, so that no neuron is held in place. `final_norm` is `fold` where a
    norm or a scale stands between W_outs and the logits, and `ignore` elsewhere. All others are the paper's.

    Args:
        vlm: the model, with whatever is live on it.
        given: hyperparameters that are not to be derived; `lr` follows from them, but not from the scorer, so that scorers
            are compared at the same step.

    Returns:
        The hyperparameters, the same for the same model.

    Raises:
        HparamsError: if no `lr` follows from those that are given.
        ModelError: if the model names fewer than two things in the drawings, or has no final norm.

    Example:
        >>> import mmedit
        >>> hparams = algorithm1_hparams(mmedit.load("iconworld-llava"), neurons_per_edit=7)
        >>> hparams.neurons_per_edit, hparams.beta, 1e-4 < hparams.lr < 1e-3
        (7, 0.0, True)
    """
    from mmedit.editors.mm_neurons import MMNeuronsHparams

    exact, sites = vlm.architecture.exact, vlm.architecture.w_outs
    foldable = given.get("scorer", "contribution") == "contribution" and exact(sites, folded=True)
    fold = exact(sites, folded=False) is False and foldable
    hp = MMNeuronsHparams(**{"beta": 0.0, "final_norm": "fold" if fold else "ignore"} | given)
    if "lr" in given:
        return hp
    if hp.penalty == "squared_l2" and hp.beta > 0:
        raise HparamsError("lr: auto needs an Algorithm 1 that is linear in it", got=f"penalty squared_l2, beta {hp.beta:g}", expected="beta 0, or penalty l2")  # fmt: skip
    steps = list(_steps(vlm, hp))
    if not steps:
        raise HparamsError("with this beta no step swaps anything", got=f"beta {hp.beta:g}", do="choose a smaller beta")
    return replace(hp, lr=float(f"{OVERTURN * median(steps):.3g}"))


def _steps(vlm: VisionLanguageModel, hp: MMNeuronsHparams) -> Iterator[float]:
    """For each noun that the model says and each other one in its place, the step that would make them equally likely."""
    from mmedit.editors.mm_neurons import closed_form

    w_u, said = vlm.architecture.w_u, list(_said(vlm, hp))
    tokens = {ranking.token_id for ranking, _ in said}
    if len(tokens) < 2:
        raise ModelError(
            "the model names too few things in drawings to derive hyperparameters from", where=vlm.name or None,
            got=sorted({caption for ranking, _ in said for caption in ranking.captions}), do="give hyperparameters of your own",
        )  # fmt: skip
    for ranking, entered in said:
        o, source = torch.tensor(ranking.activations, device=w_u.device), ranking.token_id
        d0 = _directions(vlm, ranking, entered, source)
        for target in sorted(tokens - {source}):
            v0, v1 = w_u[[source, target]].float()
            delta = closed_form(o, v0, v1, 1.0, hp.epochs, hp.beta)
            growth = float((o[:, None] * delta * (_directions(vlm, ranking, entered, target) - d0)).sum())
            ahead, behind = _logits(vlm, entered, [source, target])
            if growth > 0:
                yield (ahead - behind) / growth


def _said(vlm: VisionLanguageModel, hp: MMNeuronsHparams) -> Iterator[tuple[NeuronRanking, Entered]]:
    """The best neurons of every noun that the model says about drawings, with what entered the norms where it was predicted."""
    architecture = vlm.architecture
    norms = architecture.norms_after(architecture.w_outs)
    scenes = (scene("validation", FIRST + i, include=noun, arrangement="one") for i, noun in enumerate(NOUNS))

    def nouns(_: int, generation: Generation) -> list[Occurrence]:
        ids, found = generation.ids, noun_tokens(generation.ids, vlm.tokenizer)
        return [Occurrence(n.noun.text, n.noun.start, n.index, ids[n.index], n.n_tokens) for n in found]

    for batch in batches([render(drawn)[0] for drawn in scenes], hp.batch_size):
        with Trace(architecture, norms=True) as trace:
            seen = sightings(
                vlm, batch, nouns, activation=hp.activation, final_norm=hp.final_norm, layers=hp.layers,  # type: ignore[arg-type]
                batch_size=len(batch),
            )  # fmt: skip
        for sighting, ranking in zip(seen, rank(vlm, [[one] for one in seen], hp.neurons_per_edit, 0), strict=True):
            step, row = sighting.occurrence.index, sighting.picture
            yield ranking, {norm: trace.entered(norm, step, row) for norm in norms}


def _directions(vlm: VisionLanguageModel, ranking: NeuronRanking, entered: Entered, token: int) -> Tensor:
    """In which direction each neuron of a ranking writes a token there, to the logit `[k, d_model]`."""
    ways = directions(vlm.architecture, token, entered.__getitem__, {neuron.site for neuron in ranking.neurons})
    return torch.stack([ways[neuron.site].to(vlm.architecture.w_u.device) for neuron in ranking.neurons])


def _logits(vlm: VisionLanguageModel, entered: Entered, tokens: list[int]) -> list[float]:
    """The logits of some tokens there."""
    architecture = vlm.architecture
    final: Any = architecture.final_norm
    with torch.inference_mode():
        u = architecture.w_u[tokens].float() @ final.forward(entered[final]).float().to(architecture.w_u.device)
        bias = getattr(architecture.unembedding, "bias", None)
        return (architecture.head or Head()).logits(u if bias is None else u + bias[tokens]).tolist()
