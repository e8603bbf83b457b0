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
from typing import Any

import torch
from torch import Tensor

from mmedit.concepts import swapped
from mmedit.editors.base import Editor, Requests, apply_to_model, make_patch, requests_of, source_of
from mmedit.editors.descent import SOLVERS
from mmedit.editors.descent import closed_form as closed_form
from mmedit.editors.descent import gradient_descent as gradient_descent
from mmedit.errors import HparamsError, RequestError
from mmedit.locate import rank, rank_given
from mmedit.models.images import image_digest
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron, NeuronRanking
from mmedit.patches.patch import Patch
from mmedit.requests import EditRequest, as_prompt
from mmedit.rewrites import by_form, rewrites_of
from mmedit.scorers import SCORERS, Scorer, as_scorer
from mmedit.sightings import Sighting, answer_sightings, source_sightings
from mmedit.steps import steps_of


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


@dataclass(frozen=True)
class TokenSwap:
    """A token that the model says, its neurons, and the token that it shall say instead."""

    ranking: NeuronRanking
    target_id: int

    def provenance(self) -> dict[str, Any]:
        """What a patch file keeps of it."""
        return {
            "source_token_id": self.ranking.token_id, "target_token_id": self.target_id,
            "neurons": [str(neuron) for neuron in self.ranking.neurons], "scores": [record.score for record in self.ranking],
            "activations": list(self.ranking.activations),
        }  # fmt: skip


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

    def execute(self, vlm: VisionLanguageModel, request: Requests, neurons: Sequence[Neuron] | None = None) -> Patch:
        """Work out Δw for the best neurons; the model is not touched.

        Where source or target has several tokens, each further token that the model would not say by itself, after those
        before it, is located and edited at its own position. Swaps that share a neuron share its row: Algorithm 1 then
        descends on the sum of their losses.

        Args:
            vlm: the model.
            request: the concept swap, or several that become one patch.
            neurons: edit these instead of the best.

        Returns:
            The patch, not yet live.

        Raises:
            RequestError: if the source is not in a picture's caption, or source and target begin with the same token.
        """
        hp, w_u = self.hparams, vlm.architecture.w_u
        edits, gradients = [], dict[Neuron, Tensor]()
        for one in (part for whole in requests_of(request) for part in by_form(vlm, whole, hp.batch_size)):
            first, *further = self._token_swaps(vlm, one, neurons)
            edits.append(first.provenance() | {
                "source": source_of(one, first.ranking.source), "target": one.target, "prompt": asdict(as_prompt(one.prompt)),
                "images": [image_digest(image) for image in one.images], **({"further": [swap.provenance() for swap in further]} if further else {}),
            })  # fmt: skip
            for swap in (first, *further):
                v0, v1 = (w_u[token].double().cpu() for token in (swap.ranking.token_id, swap.target_id))
                o = torch.tensor(swap.ranking.activations, dtype=torch.float64)
                _warn_if_weak(swap.ranking, (o.abs() * (v0 - v1).norm()).tolist(), hp)
                for neuron, g in zip(swap.ranking.neurons, o[:, None] * (v0 - v1), strict=True):
                    gradients[neuron] = gradients[neuron] + g if neuron in gradients else g
        delta = SOLVERS[hp.solver](torch.stack([*gradients.values()]), hp.lr, hp.epochs, hp.beta, hp.penalty)  # type: ignore[arg-type]
        return make_patch(vlm, self, [*gradients], delta.float(), edits)

    def _token_swaps(
        self, vlm: VisionLanguageModel, request: EditRequest, neurons: Sequence[Neuron] | None
    ) -> list[TokenSwap]:
        """The tokens to be swapped, the word's first and those after it that do not follow by themselves, with their neurons."""
        seen, target_id = self._sightings(vlm, request)
        groups = {
            (
                seen[0].occurrence.token_id,
                self._target_id(vlm, seen[0], request) if target_id is None else target_id,
            ): seen
        }
        for (rival, wanted), further in self._further(vlm, request, seen).items():
            groups.setdefault((rival, wanted), further)
        if neurons is None:
            rankings = rank(vlm, [*groups.values()], self.hparams.neurons_per_edit, scorer=self._scorer)
        else:
            rankings = [rank_given(vlm, seen, neurons, scorer=self._scorer) for seen in groups.values()]
        return [TokenSwap(ranking, target_id) for ranking, (_, target_id) in zip(rankings, groups, strict=True)]

    def _further(
        self, vlm: VisionLanguageModel, request: EditRequest, seen: Sequence[Sighting]
    ) -> dict[tuple[int, int], list[Sighting]]:
        """Where, after the first new token, the model would not go on as wanted: by what it says and what it shall say."""
        hp, found = self.hparams, dict[tuple[int, int], list[Sighting]]()
        said = [*{sighting.picture: sighting.generation for sighting in seen}.values()]
        rewrites = [rewrite.after_first() for rewrite in rewrites_of(vlm, request, generations=said)]
        options: dict[str, Any] = {"layers": hp.layers, "activation": hp.activation, "batch_size": hp.batch_size}
        for picture, steps in enumerate(steps_of(vlm, rewrites, at_prompt=self._scorer.at_prompt, **options)):
            for step in steps:
                if step.margin < 0:
                    found.setdefault((step.rival, step.wanted), []).append(
                        step.sighting(vlm, picture, hp.final_norm == "fold")
                    )
        return found

    @classmethod
    def auto(cls, vlm: VisionLanguageModel, **given: Any) -> MMNeuronsHparams:
        """Step size and penalty from the scale of the model's activations and unembedding rows."""
        from mmedit.editors.auto import algorithm1_hparams

        return algorithm1_hparams(vlm, **given)

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
        _, target = swapped(sighting.generation.ids, source, request.target, vlm.tokenizer)
        if target.token_id == source.token_id:
            raise RequestError(
                "source and target begin with the same token", got=f"{request.source!r} and {request.target!r}, both {vlm.tokenizer.decode([source.token_id])!r}",
                do="choose another target; Algorithm 1 locates the neurons of the first token",
            )  # fmt: skip
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
