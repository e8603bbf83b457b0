"""Wishes for leads between tokens, linear in the rows of some neurons, and the least change that grants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmedit.neuron import Neuron, Site


@dataclass
class Wish:
    """That one token shall lead over another at one position by so much.

    Args:
        o: the neurons' activations there, in the order of `h` `[k]`.
        directions: for each site the direction u in which a written vector raises the lead `[d_model]`.
        goal: the lead that is wished for.
        now: the lead in the unedited model.

    Attributes:
        rise: by how much the lead shall rise as far as it is linear, b; what the model lacks is added to it.
        weight: its multiplier a in the last solution.
    """

    o: Tensor
    directions: Mapping[Site, Tensor] = field(repr=False)
    goal: float
    now: float
    weight: float = 0.0

    def __post_init__(self) -> None:
        self.rise = self.goal - self.now

    def learn(self, lead: float, tolerance: float) -> bool:
        """Whether a lead that was measured is near enough; if not, or if the wish holds the change back, wish for what it lacks."""
        lacks, asked = self.goal - lead, max(abs(self.goal - self.now), abs(self.goal))
        if lacks > 0 or self.weight > 0:
            self.rise += lacks
        return lacks <= tolerance * asked


def least_change(wishes: Sequence[Wish], h: Mapping[Neuron, float]) -> Tensor:
    """The Δ that minimises Σ_n h_n ‖Δ_n‖² while every wish is granted: Σ_n o_cn (Δ_n · u_c) ≥ b_c.

    Args:
        wishes: at least one; their multipliers are set.
        h: the neurons, with the weight of each.

    Returns:
        Δ `[k, d_model]` in float32, in the order of `h`; where the wishes contradict each other, the nearest to them.

    Example:
        >>> site = Site(0)
        >>> wish = Wish(torch.tensor([1.0, 2.0]).double(), {site: torch.tensor([0.0, 1.0])}, goal=3.0, now=-2.0)
        >>> least_change([wish], {Neuron(0, 1): 1.0, Neuron(0, 2): 1.0})
        tensor([[0., 1.],
                [0., 2.]])
    """
    o = torch.stack([wish.o for wish in wishes])
    places: dict[Site, list[int]] = {}
    for place, neuron in enumerate(h):
        places.setdefault(neuron.site, []).append(place)
    weights = torch.tensor([*h.values()], dtype=o.dtype)
    u = {site: torch.stack([wish.directions[site].cpu() for wish in wishes]).to(o.dtype) for site in places}
    gram = o.new_zeros(len(wishes), len(wishes))
    for site, at in places.items():
        gram += (o[:, at] / weights[at] @ o[:, at].T) * (u[site] @ u[site].T)
    rises = torch.tensor([wish.rise for wish in wishes], dtype=o.dtype)
    a = multipliers(gram, rises)
    for wish, weight in zip(wishes, a.tolist(), strict=True):
        wish.weight = weight
    change = o.new_zeros(len(h), next(iter(u.values())).shape[1])
    for site, at in places.items():
        change[at] = (o[:, at] / weights[at] * a[:, None]).T @ u[site]
    return change.float()


def multipliers(gram: Tensor, b: Tensor, sweeps: int = 2000) -> Tensor:
    """The a ≥ 0 that maximises a·b − ½ a·(gram a), by coordinate ascent, as support vector machines are trained.

    Args:
        gram: products of the wishes `[n, n]`, symmetric, none negative.
        b: what each wishes for `[n]`.
        sweeps: at most so many passes over all.

    Returns:
        a `[n]`.

    Example:
        >>> multipliers(torch.eye(2) * 2, torch.tensor([4.0, -1.0]))
        tensor([2., 0.])
    """
    gram = gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    rows, wanted, diagonal = gram.tolist(), b.tolist(), gram.diagonal().tolist()
    a, product = [0.0] * len(wanted), [0.0] * len(wanted)
    for _ in range(sweeps):
        moved = 0.0
        for i, row in enumerate(rows):
            step = max(-a[i], (wanted[i] - product[i]) / diagonal[i]) if diagonal[i] > 0 else 0.0
            if step:
                a[i] += step
                product = [p + step * r for p, r in zip(product, row, strict=True)]
                moved = max(moved, abs(step) * diagonal[i])
        if moved <= 1e-6 * max(1e-12, max(map(abs, wanted))):
            break
    return torch.tensor(a, dtype=gram.dtype)
