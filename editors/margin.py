"""Margin: the least change of the located neurons' rows for which the target leads where the source led, and nothing else falls.

A row w_n of W_out with activation o_n moves the lead of one token over another by o_n · (Δ_n · u), where u is the direction of
that lead (through the final norm, its scale held). So every wish is linear in the change Δ: at the places of the source
the target shall lead by as much as the source did, and no token of other answers shall lose its lead. Among all Δ that
grant the wishes, the least one, each row weighed with h_n = E[o_n²] over a background, is a sum over wishes

    Δ_n = Σ_c a_c · o_cn / h_n · u_c,   a ≥ 0,

whose multipliers a solve a small quadratic programme (for one wish, a = b / Σ_n o_n²/h_n ‖u‖²). The real model is then asked what
became of each wish, and the programme is solved again, linear about the change that was tried, with the wishes that were broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmedit.background import Background
from mmedit.editors.base import Requests, apply_to_model, make_patch, requests_of, source_of
from mmedit.editors.ranges import check, check_ranges
from mmedit.editors.unrelated import UnrelatedEditor
from mmedit.editors.wishes import Problem
from mmedit.errors import RequestError
from mmedit.models.images import image_digest
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron, Site
from mmedit.patches.live import stack_of
from mmedit.patches.patch import Patch
from mmedit.requests import EditRequest, as_prompt
from mmedit.rewrites import Rewrite, rewrites_of
from mmedit.scorers.contribution import contribution
from mmedit.steps import Step, steps_of


@dataclass(frozen=True)
class MarginHparams:
    """Hyperparameters of Margin; none of them has the scale of a model's weights."""

    neurons_per_edit: int = 10
    """How many neurons to change for each token to be taught, the best by contribution × selectivity."""
    margin: float = 1.2
    """By how much the target shall lead, as a multiple of the source's lead before."""
    keep: float = 0.5
    """What part of its lead each token of other answers shall keep."""
    enough: float = 2.5
    """A lead in logits that is enough for a token of other answers, however great it was."""
    firmness: float = 0.8
    """How hard those leads are defended: the greatest multiplier of such a wish, as a multiple of the edits' greatest."""
    ridge: float = 0.1
    """Added to each neuron's h, as a part of their mean."""
    rounds: int = 10
    """How often the programme is solved at most; the best change that was tried is taken."""
    n_unrelated: int = 64
    """Drawings for the background, where no pictures are given."""
    watched: int = 32
    """How many answers of the background are asked for again in each round: those in which the change is heard most."""
    layers: list[int] | None = None
    """Decoder layers to choose from, from 0; all when empty."""
    batch_size: int = 16
    """Pictures per batch."""

    def __post_init__(self) -> None:
        least = {
            "neurons_per_edit": 1,
            "rounds": 1,
            "n_unrelated": 1,
            "watched": 0,
            "batch_size": 1,
            "keep": 0,
            "enough": 0,
            "layers": 0,
        }
        check_ranges(self, least=least, above={"margin": 0, "firmness": 0, "ridge": 0})
        check(self, "keep", self.keep <= 1, "1 or less")


class Margin(UnrelatedEditor):
    """Swap concepts by the least change that gives the target the source's lead and leaves other answers theirs.

    Several requests are solved together. Words of several tokens are taught token by token; where the model goes on by
    itself, nothing is changed.

    Args:
        hparams: `MarginHparams`.
        unrelated: pictures that no edit is about, to be left alone; drawings of everyday things when None.
        questions: prompts without a picture, whose answers are to be left alone too.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, caption, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> patch = mmedit.editors.Margin().execute(vlm, mmedit.EditRequest(picture, things[0].noun, "kite"))
        >>> with patch.applied(vlm):
        ...     vlm.caption([picture]) == [caption.replace(things[0].noun, "kite")]
        True
    """

    name = "Margin"
    Hparams = MarginHparams
    hparams: MarginHparams

    def __init__(
        self,
        hparams: MarginHparams | None = None,
        unrelated: Sequence[Any] | None = None,
        questions: Sequence[Any] = (),
    ) -> None:
        super().__init__(hparams, unrelated)
        self.questions = questions
        self._background: tuple[Any, Background] | None = None

    def with_hparams(self, **changes: Any) -> Any:
        """The same editor with some hyperparameters changed; as `Editor.with_hparams`."""
        changed = super().with_hparams(**changes)
        changed.questions = self.questions
        return changed

    def execute(self, vlm: VisionLanguageModel, request: Requests) -> Patch:
        """Work out the least change for one request or several together; the model is the same at the end as at the start.

        Args:
            vlm: the model.
            request: the concept swap, or several that become one patch.

        Returns:
            The patch, not yet live. Each of its edits says what lead the target has in the end.

        Raises:
            RequestError: if the source is not in a picture's caption, or the list is empty.
            ImageError: if a picture cannot be read.
        """
        requests, background = requests_of(request), self.background(vlm)
        taught = [self._taught(vlm, one, requests) for one in requests]
        tokens = [(one, steps) for one, of_one in zip(requests, taught, strict=True) for steps in by_token(of_one)]
        h, chosen = self._neurons(vlm, background, tokens)
        rewrites, sources = [r for of_one in taught for r in of_one], [form for one in requests for form in one.swaps]
        problem = Problem(vlm, self.hparams, h, background, rewrites, sources)
        for _, steps in tokens:
            problem.teach(steps)
        patch = problem.best_of(lambda delta: make_patch(vlm, self, [*h], delta, []))
        edits = []
        for number, one in enumerate(requests):
            own = [(steps, neurons) for (of, steps), neurons in zip(tokens, chosen, strict=True) if of is one]
            edits.append(self._provenance(one, next(iter(taught[number])), own, problem))
        return replace(patch, edits=tuple(edits))

    def background(self, vlm: VisionLanguageModel) -> Background:
        """What the model as it is now says about the unrelated pictures; worked out once, till the model or they change.

        Args:
            vlm: the model.
        """
        given = None if self.unrelated is None else [image_digest(picture) for picture in self.unrelated]
        asked = [as_prompt(question) for question in self.questions]
        state = (vlm, stack_of(vlm).state, self.hparams.n_unrelated, given, asked)
        if self._background is None or self._background[0] != state:
            made = Background(vlm, self.unrelated_pictures(), None, self.questions, self.hparams.batch_size)
            self._background = state, made
        return self._background[1]

    def _taught(
        self, vlm: VisionLanguageModel, request: EditRequest, among: Sequence[EditRequest]
    ) -> dict[Rewrite, list[Step]]:
        """The wanted answers of a request, each with the places at which the model would say something else."""
        rewrites = rewrites_of(vlm, request, self.hparams.batch_size, among=among)
        steps = steps_of(vlm, rewrites, layers=self.hparams.layers, batch_size=self.hparams.batch_size)
        wrong = {rewrite: [s for s in found if s.margin < 0] for rewrite, found in zip(rewrites, steps, strict=True)}
        if not any(wrong.values()):
            raise RequestError("the model says the target already", got=rewrites[0].generation.text.strip())
        return wrong

    def _neurons(
        self, vlm: VisionLanguageModel, background: Background, tokens: Sequence[tuple[EditRequest, list[Step]]]
    ) -> tuple[dict[Neuron, float], list[list[Neuron]]]:
        """The neurons to change with the weight h of each, and those of each token to be taught, best first."""
        hp, h, chosen = self.hparams, dict[Neuron, float](), []
        for number, (request, steps) in enumerate(tokens):
            positions = background.outside([*request.swaps])
            others = [step for other, (_, found) in enumerate(tokens) if other != number for step in found]
            power, best = dict[Site, Tensor](), []
            for site in steps[0].activations:
                power[site] = background.power(site, positions)
                if others:  # to the neurons of one token, the places of the others are background too
                    squares = torch.stack([s.activations[site] for s in others]).float().cpu().square()
                    power[site] = power[site] + squares.mean(0)
                top = _score(vlm, site, steps, power[site]).topk(min(hp.neurons_per_edit, len(power[site])))
                ranked = zip(top.values.tolist(), top.indices.tolist(), strict=True)
                best += [(value, Neuron(site.layer, unit, site.expert)) for value, unit in ranked]
            best = sorted(best, key=lambda item: (-item[0], item[1]))[: hp.neurons_per_edit]
            chosen.append([neuron for _, neuron in best])
            powers = {neuron: float(power[neuron.site][neuron.unit]) for neuron in chosen[-1]}
            ridge = hp.ridge * sum(powers.values()) / len(powers)
            for neuron, value in powers.items():
                h[neuron] = max(h.get(neuron, 0.0), value + ridge)
        return dict(sorted(h.items())), chosen

    def _provenance(
        self,
        request: EditRequest,
        rewrite: Rewrite,
        tokens: Sequence[tuple[list[Step], list[Neuron]]],
        problem: Problem,
    ) -> dict[str, Any]:
        steps, neurons = tokens[0]
        return {
            "source": source_of(request, rewrite.generation.text), "target": request.target,
            "source_token_id": steps[0].rival, "target_token_id": steps[0].wanted, "prompt": asdict(as_prompt(request.prompt)),
            "images": [image_digest(image) for image in request.images], "neurons": [str(neuron) for neuron in neurons],
            "activations": [float(steps[0].activations[neuron.site][neuron.unit]) for neuron in neurons],
            **({"forms": dict(request.forms)} if request.forms else {}),
            "lead": min(problem.lead[step.rewrite][step.place] for found, _ in tokens for step in found),
        }  # fmt: skip


def by_token(taught: dict[Rewrite, list[Step]]) -> list[list[Step]]:
    """The steps of an edit, those together at which the same token shall be said in the place of the same other."""
    groups: dict[tuple[int, int], list[Step]] = {}
    for steps in taught.values():
        for step in steps:
            groups.setdefault((step.rival, step.wanted), []).append(step)
    return [*groups.values()]


def _score(vlm: VisionLanguageModel, site: Site, steps: Sequence[Step], power: Tensor) -> Tensor:
    """Contribution to what is said × selectivity o² / (o² + E[o²]), the mean over the steps `[d_ffn]`."""
    o = torch.stack([step.activations[site] for step in steps]).float()
    if not o.any():  # an expert that none of them asks
        return torch.zeros(o.shape[1])
    columns = vlm.architecture.w_u[[step.rival for step in steps]].float()
    matrix = vlm.architecture.w_out(site).matrix
    with torch.inference_mode():
        by = contribution(o.to(matrix.device), matrix, columns.to(matrix.device)).cpu()
    squares = o.cpu().square()
    return (by * squares / (squares + power).clamp_min(1e-30)).mean(0)


def apply_margin_to_model(
    model: Any, tok_or_processor: Any, requests: Any, hparams: Any, copy: bool = False, return_orig_weights: bool = False,
    keep_original_weight: bool = False, **kw: Any,
) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
    """ROME's function face of `Margin`; arguments, results and errors as for `mmedit.editors.base.apply_to_model`.

    Other keywords, which some harnesses pass to every method, are ignored.
    """
    return apply_to_model(
        Margin, model, tok_or_processor, requests, hparams, copy, return_orig_weights, keep_original_weight
    )
