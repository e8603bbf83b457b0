"""Wishes for leads between tokens, linear in the rows of some neurons, and the least change that grants them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmedit.background import Background
from mmedit.models.vlm import VisionLanguageModel
from mmedit.neuron import Neuron, Site, by_site
from mmedit.patches.patch import Patch
from mmedit.rewrites import Rewrite
from mmedit.steps import Leads, Step, leads_of, steps_of

if TYPE_CHECKING:
    from mmedit.editors.margin import MarginHparams

TOLERANCE = 0.05
"""How far a wish may stay behind, as a part of what it asks for."""


@dataclass
class Wish:
    """That one token shall lead over another at one position by so much; linear in the change near the one that is live.

    Args:
        o: the neurons' activations there, in the order of `h` `[k]`.
        directions: for each site the direction u in which a written vector raises the lead `[d_model]`.
        goal: the lead that is wished for.
        rise: what the change must come to for it, b: Σ_n o_n (Δ_n · u) ≥ b.
        cap: the greatest multiplier that it may get: beyond it, the wish costs the others more than it is worth.
        weight: its multiplier a in the last solution.
    """

    o: Tensor
    directions: Mapping[Site, Tensor] = field(repr=False)
    goal: float
    rise: float
    cap: float = math.inf
    weight: float = 0.0

    def granted(self, lead: float) -> bool:
        """Whether a lead that was measured is near enough, neither less nor, if the wish weighs, much more; or all is done for it."""
        enough = lead >= self.goal - TOLERANCE * abs(self.goal)
        return self.weight >= self.cap or (
            enough and (self.weight == 0 or lead <= self.goal + 4 * TOLERANCE * abs(self.goal))
        )


def comes_to(o: Tensor, directions: Mapping[Site, Tensor], neurons: Iterable[Neuron], delta: Tensor) -> float:
    """Σ_n o_n (Δ_n · u): what a change `[k, d_model]` comes to for a lead.

    Example:
        >>> comes_to(torch.tensor([2.0]), {Site(0): torch.tensor([1.0, 3.0])}, [Neuron(0, 5)], torch.tensor([[1.0, 1.0]]))
        8.0
    """
    u = torch.stack([directions[neuron.site].cpu() for neuron in neurons]).double()
    return float(o.double() @ (delta.double().cpu() * u).sum(1))


def least_change(wishes: Sequence[Wish], h: Mapping[Neuron, float]) -> Tensor:
    """The Δ that minimises Σ_n h_n ‖Δ_n‖² while every wish is granted: Σ_n o_cn (Δ_n · u_c) ≥ b_c.

    Args:
        wishes: at least one; their multipliers are set.
        h: the neurons, with the weight of each.

    Returns:
        Δ `[k, d_model]` in float32, in the order of `h`. Where the wishes contradict each other, those with a cap give way.

    Example:
        >>> site = Site(0)
        >>> wish = Wish(torch.tensor([1.0, 2.0]).double(), {site: torch.tensor([0.0, 1.0])}, goal=3.0, rise=5.0)
        >>> least_change([wish], {Neuron(0, 1): 1.0, Neuron(0, 2): 1.0})
        tensor([[0., 1.],
                [0., 2.]])
    """
    o = torch.stack([wish.o for wish in wishes])
    places = by_site([*h])
    weights = torch.tensor([*h.values()], dtype=o.dtype)
    u = {site: torch.stack([wish.directions[site].cpu() for wish in wishes]).to(o.dtype) for site in places}
    gram = o.new_zeros(len(wishes), len(wishes))
    for site, at in places.items():
        gram += (o[:, at] / weights[at] @ o[:, at].T) * (u[site] @ u[site].T)
    rises = torch.tensor([wish.rise for wish in wishes], dtype=o.dtype)
    a = multipliers(gram, rises, [wish.cap for wish in wishes])
    for wish, weight in zip(wishes, a.tolist(), strict=True):
        wish.weight = weight
    change = o.new_zeros(len(h), next(iter(u.values())).shape[1])
    for site, at in places.items():
        change[at] = (o[:, at] / weights[at] * a[:, None]).T @ u[site]
    return change.float()


def multipliers(gram: Tensor, b: Tensor, caps: Sequence[float], sweeps: int = 2000) -> Tensor:
    """The a with 0 ≤ a ≤ cap that maximises a·b − ½ a·(gram a), by coordinate ascent, as support vector machines are trained.

    Args:
        gram: products of the wishes `[n, n]`, symmetric, none negative.
        b: what each wishes for `[n]`.
        caps: the greatest multiplier of each.
        sweeps: at most so many passes over all.

    Returns:
        a `[n]`.

    Example:
        >>> multipliers(torch.eye(2) * 2, torch.tensor([4.0, -1.0]), [1.0, 1.0])
        tensor([1., 0.])
    """
    gram = gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    rows, wanted, diagonal = gram.numpy(), b.tolist(), gram.diagonal().tolist()
    a, product = [0.0] * len(wanted), np.zeros(len(wanted))
    for _ in range(sweeps):
        moved = 0.0
        for i, row in enumerate(rows):
            best = a[i] + (wanted[i] - float(product[i])) / diagonal[i] if diagonal[i] > 0 else 0.0
            step = min(max(best, 0.0), caps[i]) - a[i]
            if step:
                a[i] += step
                product += step * row
                moved = max(moved, abs(step) * diagonal[i])
        if moved <= 1e-6 * max(1e-12, max(map(abs, wanted))):
            break
    return torch.tensor(a, dtype=gram.dtype)


class Problem:
    """The wishes of some edits, and what the real model makes of a change.

    Args:
        vlm: the model, unedited.
        hp: Margin's hyperparameters.
        h: the neurons, with the weight of each.
        background: what is to be left alone.
        rewrites: the wanted answers of the edits.
        sources: the words that the edits replace; answers of the background that say one are not watched.
    """

    def __init__(
        self, vlm: VisionLanguageModel, hp: MarginHparams, h: Mapping[Neuron, float], background: Background, rewrites: Sequence[Rewrite],
        sources: Sequence[str],
    ) -> None:  # fmt: skip
        self.vlm, self.hp, self.h, self.background, self.rewrites = vlm, hp, h, background, rewrites
        self.others = background.without(sources)
        self.wishes: dict[tuple[Rewrite, int, int], Wish] = {}
        self.goals: dict[Rewrite, Tensor] = {}
        self.cap = math.inf  # until the edits' own wishes are solved
        self.lead: dict[Rewrite, list[float]] = {}
        self._set_goals(rewrites)

    def teach(self, steps: Sequence[Step]) -> None:
        """Wish that each step's wanted token leads: a word's first by as much as the source did, for so sure is the model
        of what it sees; those after it by enough, for the words before them tell them apart from all else that it says."""
        for step in steps:
            lead, first = -self.hp.margin * step.margin, step.place - 1 not in step.rewrite.places
            self.goals[step.rewrite][step.place] = min(lead, self.hp.enough)  # over any third token
            self._wish(step, step.rival, lead if first else min(lead, self.hp.enough))

    def best_of(self, patched: Callable[[Tensor], Patch]) -> Patch:
        """Solve, try on the real model and solve again until all is granted, or for so many rounds.

        Args:
            patched: from a change `[k, d_model]` to its patch.

        Returns:
            The patch that says most of the wanted answers, and of those the one that breaks least.
        """
        tried: list[tuple[tuple[int, int], Patch, dict[Rewrite, list[float]]]] = []
        for _ in range(self.hp.rounds):
            delta = self.solve()
            patch, watched = patched(delta), self.watch(delta)
            with patch.applied(self.vlm):
                leads = dict(zip(watched, leads_of(self.vlm, watched, self.hp.batch_size), strict=True))
                lacking = self.learn(leads, delta)
            missed = sum(int((leads[rewrite].margins < 0).sum()) for rewrite in self.rewrites)
            tried.append(
                ((missed, lacking), patch, {rewrite: leads[rewrite].margins.tolist() for rewrite in self.rewrites})
            )
            if not lacking:
                break
        (missed, _), patch, self.lead = min(tried, key=lambda one: one[0])
        if missed:
            self._warn()
        return patch

    def solve(self) -> Tensor:
        """The least change that grants the wishes, as far as they are linear `[k, d_model]`."""
        change = least_change([*self.wishes.values()], self.h)
        if math.isinf(self.cap):
            self.cap = self.hp.firmness * max(wish.weight for wish in self.wishes.values())
        return change

    def watch(self, delta: Tensor) -> list[Rewrite]:
        """The answers to ask for when a change is live: those of the edits, and those of the background that hear it most."""
        heard = self.background.loudest([*self.h], delta, self.others, self.hp.watched)
        wished = [rewrite for rewrite, _, _ in self.wishes]
        watched = [*dict.fromkeys([*self.rewrites, *wished, *heard])]
        self._set_goals([rewrite for rewrite in watched if rewrite not in self.goals])
        return watched

    def learn(self, leads: Mapping[Rewrite, Leads], delta: Tensor) -> int:
        """Work out anew, while a change is live, the wishes that it does not grant and the goals that it breaks; how many there are."""
        again: dict[Rewrite, list[tuple[int, int, float]]] = {}
        for rewrite, found in leads.items():
            for place, (lead, rival) in enumerate(zip(found.margins.tolist(), found.rivals.tolist(), strict=True)):
                wish, goal = self.wishes.get((rewrite, place, rival)), float(self.goals[rewrite][place])
                off = not wish.granted(lead) if wish else goal > 0 and lead < goal * (1 - TOLERANCE)
                if off:
                    again.setdefault(rewrite, []).append((place, rival, wish.goal if wish else goal))
        chosen = [replace(rewrite, places=tuple(place for place, _, _ in found)) for rewrite, found in again.items()]
        steps = steps_of(self.vlm, chosen, layers=self.hp.layers, batch_size=self.hp.batch_size) if chosen else []
        for (rewrite, wishes), of_one in zip(again.items(), steps, strict=True):
            for (_, rival, goal), step in zip(wishes, of_one, strict=True):
                self._wish(replace(step, rewrite=rewrite), rival, goal, delta)
        return sum(map(len, again.values()))

    def _warn(self) -> None:
        """Say which tokens of the wanted answers the model would still not say."""
        missed = {r: [r.wanted[i] for i, lead in enumerate(leads) if lead < 0] for r, leads in self.lead.items()}
        tokens = [repr(self.vlm.tokenizer.decode([token])) for found in missed.values() for token in found]
        warnings.warn(
            f"after {self.hp.rounds} rounds {sum(map(bool, missed.values()))} of {len(missed)} answers are not as wanted, at {', '.join(tokens)}; "
            "raise neurons_per_edit or rounds", stacklevel=4,
        )  # fmt: skip

    def _set_goals(self, rewrites: Sequence[Rewrite]) -> None:
        """The lead that each token of some answers shall keep; asked of the unedited model. Below 0 there is nothing to keep."""
        for rewrite, leads in zip(rewrites, leads_of(self.vlm, rewrites, self.hp.batch_size), strict=True):
            self.goals[rewrite] = (self.hp.keep * leads.margins).clamp(max=self.hp.enough)

    def _wish(self, step: Step, rival: int, goal: float, delta: Tensor | None = None) -> None:
        o = torch.stack([step.activations[n.site][n.unit] for n in self.h]).double().cpu()
        lead, u = float(step.logits[step.wanted] - step.logits[rival]), step.direction(self.vlm, rival)
        so_far = 0.0 if delta is None else comes_to(o, u, self.h, delta)
        cap = math.inf if step.rewrite in self.rewrites else self.cap  # the edits' own answers come first
        self.wishes[step.rewrite, step.place, rival] = Wish(o, u, goal, goal - lead + so_far, cap)
