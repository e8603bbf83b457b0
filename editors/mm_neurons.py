"""Algorithm 1 of Pan et al. (ACL Findings 2024): move a few neurons' output vectors from the source word to the target.

For each chosen neuron with activation o and row w of W_out, minimise over Δw

    L(Δw) = o · ((w + Δw)·v0 − (w + Δw)·v1) + β · ‖Δw‖

by ε steps of gradient descent from 0, where v0 and v1 are the columns of W_U for source and target.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmedit.concepts import swapped
from mmedit.editors.base import Editor, apply_to_model, make_patch
from mmedit.errors import HparamsError, RequestError
from mmedit.locate import rank, rank_given
from mmedit.models.images import image_digest
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron, NeuronRanking
from mmedit.patches.patch import Patch
from mmedit.requests import EditRequest, as_prompt
from mmedit.scorers import SCORERS, Scorer, as_scorer
from mmedit.sightings import Sighting, answer_sightings, source_sightings

Penalty = Literal["l2", "squared_l2"]


@dataclass(frozen=True)
class MMNeuronsHparams:
    """Hyperparameters of Algorithm 1; the defaults are those of the paper's appendix B.3."""

    neurons_per_edit: int = 5
    """How many neurons to change, the best by the scorer."""
    lr: float = 1e-3
    """Step size of the gradient descent."""
    epochs: int = 1000
    """Steps of the gradient descent, ε."""
    beta: float = 4.0
    """Weight of the penalty on ‖Δw‖."""
    penalty: str = "l2"
    """`l2` for ‖Δw‖ as in the paper, `squared_l2` for ‖Δw‖²."""
    solver: str = "closed_form"
    """`closed_form`, or `gradient_descent` step by step, with the same result."""
    scorer: str = "contribution"
    """What neurons are chosen by: `contribution` as in the paper; its baselines `activation` (Base) and `attribution` (Mmns);
    `random` as the control. Algorithm 1 is the same for all."""
    seed: int = 0
    """Of the random neurons."""
    activation: str = "w_out_input"
    """`w_out_input` is what W_out sees; `act_fn` is what the authors' code records (no up factor)."""
    final_norm: str = "ignore"
    """`ignore` as in the paper, or `fold` the final norm into the scores."""
    layers: list[int] | None = None
    """Decoder layers to choose from, from 0; all when empty."""
    batch_size: int = 8
    """Pictures per batch while locating."""

    def __post_init__(self) -> None:
        choices = {
            "scorer": tuple(SCORERS), "penalty": ("l2", "squared_l2"), "solver": ("closed_form", "gradient_descent"),
            "activation": ("w_out_input", "act_fn"), "final_norm": ("ignore", "fold"),
        }  # fmt: skip
        for name, allowed in choices.items():
            self._check(name, getattr(self, name) in allowed, " or ".join(allowed))
        for name, least in {"neurons_per_edit": 1, "seed": 0, "epochs": 1, "batch_size": 1}.items():
            self._check(name, getattr(self, name) >= least, f"{least} or more")
        self._check("lr", math.isfinite(self.lr) and self.lr > 0, "above 0")
        self._check("beta", math.isfinite(self.beta) and self.beta >= 0, "0 or more")
        self._check("layers", self.layers is None or (self.layers and min(self.layers) >= 0), "layer numbers from 0")
        folds = self.final_norm == "ignore" or as_scorer(self.scorer).folds
        self._check("final_norm", folds, f"ignore, with the scorer {self.scorer!r}")

    def _check(self, name: str, holds: object, expected: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise HparamsError("a hyperparameter out of range", where=name, got=repr(value), expected=expected)


def closed_form(
    o: Tensor, v0: Tensor, v1: Tensor, lr: float, epochs: int, beta: float, penalty: Penalty = "l2"
) -> Tensor:
    """The last iterate of Algorithm 1, without iterating.

    The gradient of the first term is g = o·(v0 − v1), a constant, so every iterate is −r·g/G with G = ‖g‖. For the
    squared norm r follows a geometric series. For the norm, r₁ = lr·G (its gradient at 0 is 0) and then
    r ← r + lr·(G − β·sign r): a straight climb if G ≥ β, and otherwise a step of G − β modulo 2β around 0.

    Args:
        o: activation of each neuron `[k]`, or of one `[]`.
        v0: column of W_U for the source `[d_model]`.
        v1: column of W_U for the target `[d_model]`.
        lr: step size.
        epochs: number of steps, ε.
        beta: weight of the penalty.
        penalty: `l2` for ‖Δw‖, `squared_l2` for ‖Δw‖².

    Returns:
        Δw for each neuron, `[k, d_model]` or `[d_model]`.

    Example:
        >>> o, v0, v1 = torch.tensor(2.0), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> closed_form(o, v0, v1, lr=0.5, epochs=3, beta=1.0)
        tensor([-2.2929,  2.2929])
    """
    g = o[..., None] * (v0 - v1)
    size = g.norm(dim=-1, keepdim=True)
    if penalty == "squared_l2":
        return -g * lr * _geometric_sum(2 * lr * beta, epochs)
    climbed = size + (epochs - 1) * (size - beta)
    around = torch.remainder(climbed + (beta - size), 2 * beta) - (beta - size) if beta > 0 else climbed
    r = lr * torch.where(size >= beta, climbed, around)
    return torch.where(size > 0, -r * g / torch.where(size > 0, size, 1), torch.zeros_like(g))


def _geometric_sum(x: float, n: int) -> float:
    """Σ (1 − x)^k for k below n, exact for tiny x too."""
    if x == 0:
        return n
    return -math.expm1(n * math.log1p(-x)) / x if x < 1 else (1 - (1 - x) ** n) / x


def gradient_descent(
    o: Tensor, v0: Tensor, v1: Tensor, lr: float, epochs: int, beta: float, penalty: Penalty = "l2"
) -> Tensor:
    """Algorithm 1 step by step with autograd; the reference for `closed_form`, with the same arguments and result."""
    delta = torch.zeros(*o.shape, len(v0), dtype=torch.result_type(o, v0), device=v0.device, requires_grad=True)
    for _ in range(epochs):
        swap = (o * (delta @ (v0 - v1))).sum()  # the terms of w itself do not depend on Δw
        norm = delta.norm(dim=-1) if penalty == "l2" else delta.square().sum(-1)
        (gradient,) = torch.autograd.grad(swap + beta * norm.sum(), delta)
        with torch.no_grad():
            delta -= lr * gradient
    return delta.detach()


SOLVERS = {"closed_form": closed_form, "gradient_descent": gradient_descent}


class MMNeurons(Editor):
    """Locate multi-modal neurons, by contribution score unless told otherwise, and edit the best with Algorithm 1.

    Args:
        hparams: `MMNeuronsHparams`; the paper's values when None.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, _, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
        >>> editor.execute(vlm, mmedit.EditRequest(picture, things[0].noun, "kite")).neurons == tuple(
        ...     sorted(editor.locate(vlm, mmedit.EditRequest(picture, things[0].noun, "kite")).neurons[:5])
        ... )
        True
    """

    name = "MMNeurons"
    Hparams = MMNeuronsHparams
    hparams: MMNeuronsHparams

    def locate(self, vlm: VisionLanguageModel, request: EditRequest) -> NeuronRanking:
        """Rank the neurons that write the request's source over all its pictures, best first.

        Raises:
            RequestError: if the source is not in a picture's caption; it shows the caption and its nouns.
        """
        return rank(vlm, [self._sightings(vlm, request)[0]], scorer=self._scorer)[0]

    def execute(self, vlm: VisionLanguageModel, request: EditRequest, neurons: Sequence[Neuron] | None = None) -> Patch:
        """Work out Δw for the best neurons; the model is not touched.

        Args:
            vlm: the model.
            request: the concept swap.
            neurons: edit these instead of the best.

        Returns:
            The patch, not yet live.

        Raises:
            RequestError: if the source is not in a picture's caption, or source and target begin with the same token.
        """
        hp = self.hparams
        seen, target_id = self._sightings(vlm, request)
        if neurons is None:
            ranking = rank(vlm, [seen], hp.neurons_per_edit, scorer=self._scorer)[0]
        else:
            ranking = rank_given(vlm, seen, neurons, scorer=self._scorer)
        if target_id is None:
            target_id = self._target_id(vlm, seen[0], request)
        w_u = vlm.architecture.w_u
        v0, v1 = (w_u[token].double().cpu() for token in (ranking.token_id, target_id))
        o = torch.tensor(ranking.activations, dtype=torch.float64)
        delta = SOLVERS[hp.solver](o, v0, v1, hp.lr, hp.epochs, hp.beta, hp.penalty)  # type: ignore[arg-type]
        _warn_if_weak(ranking, (o.abs() * (v0 - v1).norm()).tolist(), hp)
        edit = {
            "source": request.source or seen[0].occurrence.word, "target": request.target, "source_token_id": ranking.token_id, "target_token_id": target_id,
            "prompt": asdict(as_prompt(request.prompt)), "images": [image_digest(image) for image in request.images],
            "neurons": [str(neuron) for neuron in ranking.neurons], "scores": [record.score for record in ranking],
            "activations": list(ranking.activations),
        }  # fmt: skip
        return make_patch(vlm, self, ranking.neurons, delta.float(), [edit])

    @property
    def _scorer(self) -> Scorer:
        return as_scorer(self.hparams.scorer, self.hparams.seed)

    def _sightings(self, vlm: VisionLanguageModel, request: EditRequest) -> tuple[list[Sighting], int | None]:
        """Where the source is said; without one, where the answer first differs from the target, and what to say there."""
        hp = self.hparams
        options = self._scorer.options(
            vlm.architecture, activation=hp.activation, final_norm=hp.final_norm, layers=hp.layers, batch_size=hp.batch_size,
        )  # fmt: skip
        if request.source is None:
            return answer_sightings(vlm, request.images, request.target, request.prompt, **options)
        return source_sightings(vlm, request.images, request.source, request.prompt, **options), None

    def _target_id(self, vlm: VisionLanguageModel, sighting: Sighting, request: EditRequest) -> int:
        """The first token of the target where the source stands; says so when a word has several."""
        source = sighting.occurrence
        target = swapped(sighting.generation.ids, source, request.target, vlm.tokenizer)
        if target.token_id == source.token_id:
            raise RequestError(
                "source and target begin with the same token", got=f"{request.source!r} and {request.target!r}, both {vlm.tokenizer.decode([source.token_id])!r}",
                do="choose another target; Algorithm 1 swaps the first token only",
            )  # fmt: skip
        for role, word in (("source", source), ("target", target)):
            if word.n_tokens > 1:
                first = vlm.tokenizer.decode([word.token_id])
                warnings.warn(
                    f"the {role} {word.word!r} takes {word.n_tokens} tokens; only the first, {first!r}, is edited",
                    stacklevel=4,
                )
        return target.token_id


def _warn_if_weak(ranking: NeuronRanking, sizes: list[float], hp: MMNeuronsHparams) -> None:
    weak = [(neuron, size) for neuron, size in zip(ranking.neurons, sizes, strict=True) if size < hp.beta]
    if hp.penalty == "l2" and weak:
        listed = ", ".join(f"{neuron}: {size:.3g}" for neuron, size in weak)
        warnings.warn(
            f"beta={hp.beta:g} holds {len(weak)} of {len(sizes)} neurons in place: their G = |o|·‖v0 − v1‖ is below it ({listed}); choose a smaller beta",
            stacklevel=3,
        )


def apply_mm_neurons_to_model(
    model: Any,
    tok_or_processor: Any,
    requests: Any,
    hparams: Any,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    **kw: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """ROME's function face of `MMNeurons`; arguments, results and errors as for `mmedit.editors.base.apply_to_model`.

    Other keywords, which some harnesses pass to every method, are ignored.
    """
    return apply_to_model(
        MMNeurons, model, tok_or_processor, requests, hparams, copy, return_orig_weights, keep_original_weight
    )
