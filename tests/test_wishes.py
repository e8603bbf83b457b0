"""The least change that grants wishes: constraints hold, nothing smaller does, and caps are kept."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmedit.editors.wishes import Wish, comes_to, least_change, multipliers
from mmedit.neuron import Neuron, Site

seeds = st.integers(0, 10**6)


def random_wishes(seed: int, n: int, k: int, d: int) -> tuple[list[Wish], dict[Neuron, float]]:
    """Wishes about k neurons in two layers whose directions differ."""
    g = torch.Generator().manual_seed(seed)
    sites = [Site(0), Site(1)]
    h = {Neuron(i % 2, i): float(torch.rand((), generator=g)) + 0.1 for i in range(k)}
    h = dict(sorted(h.items()))
    wishes = [
        Wish(torch.randn(k, generator=g).double(), {s: torch.randn(d, generator=g) for s in sites}, 1.0, float(torch.rand((), generator=g)) + 0.5)
        for _ in range(n)
    ]  # fmt: skip
    return wishes, h


def granted(wish: Wish, h: dict[Neuron, float], delta: Tensor) -> float:
    """By how much a change raises the lead that a wish is about."""
    return sum(
        float(o) * float(row.double() @ wish.directions[n.site].double())
        for o, n, row in zip(wish.o, h, delta, strict=True)
    )


def cost(h: dict[Neuron, float], delta: Tensor) -> float:
    return sum(weight * float(row.double().square().sum()) for weight, row in zip(h.values(), delta, strict=True))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 5))
def test_every_wish_is_granted_and_those_that_weigh_are_granted_exactly(seed: int, n: int) -> None:
    wishes, h = random_wishes(seed, n, 6, 8)
    delta = least_change(wishes, h)
    for wish in wishes:
        risen = granted(wish, h, delta)
        assert risen >= wish.rise - 1e-3
        if wish.weight > 1e-6:
            assert abs(risen - wish.rise) < 1e-3


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 3))
def test_no_smaller_change_grants_them(seed: int, n: int) -> None:
    """Every other change that grants them, here a random one scaled up until it does, costs at least as much."""
    wishes, h = random_wishes(seed, n, 6, 8)
    delta = least_change(wishes, h)
    g = torch.Generator().manual_seed(seed + 1)
    for near in (0.05, 0.5):
        other = delta + near * delta.norm() * torch.randn(delta.shape, generator=g) / math.sqrt(delta.numel())
        rises = [granted(wish, h, other) for wish in wishes]
        if min(rises) > 0:
            other = other * max(wish.rise / rise for wish, rise in zip(wishes, rises, strict=True))
            assert cost(h, other) >= cost(h, delta) * (1 - 1e-4)


def test_a_single_wish_has_its_closed_form() -> None:
    (wish,), h = random_wishes(3, 1, 6, 8)
    weights = torch.tensor([*h.values()]).double()
    u = torch.stack([wish.directions[n.site] for n in h]).double()
    gram = (wish.o.square() / weights * u.square().sum(1)).sum()
    expected = (wish.o / weights)[:, None] * u * (wish.rise / gram)
    assert torch.allclose(least_change([wish], h), expected.float(), rtol=1e-5)


def test_a_loud_neuron_of_the_background_is_moved_less() -> None:
    wish = Wish(torch.ones(2).double(), {Site(0): torch.tensor([1.0, 0.0])}, 1.0, 1.0)
    quiet, loud = least_change([wish], {Neuron(0, 0): 0.1, Neuron(0, 1): 0.9}).norm(dim=1).tolist()
    assert math.isclose(quiet, 9 * loud, rel_tol=1e-5)


def test_what_counts_as_granted() -> None:
    wish = Wish(torch.ones(1).double(), {Site(0): torch.tensor([1.0])}, goal=2.0, rise=4.0)
    assert wish.granted(1.95)
    assert not wish.granted(1.8)
    assert wish.granted(9.0), "it does not weigh: more is as good"
    least_change([wish], {Neuron(0, 0): 1.0})
    assert wish.weight > 0
    assert not wish.granted(9.0), "the change is greater than it need be"


@given(seeds)
def test_a_change_comes_to_what_the_wishes_ask(seed: int) -> None:
    wishes, h = random_wishes(seed, 2, 5, 7)
    delta = least_change(wishes, h)
    for wish in wishes:
        assert math.isclose(
            comes_to(wish.o, wish.directions, h, delta), granted(wish, h, delta), rel_tol=1e-5, abs_tol=1e-6
        )


def test_a_wish_that_costs_too_much_gives_way_to_one_without_a_cap() -> None:
    """Two wishes that contradict each other nearly: without the cap both multipliers would run away."""
    firm = Wish(torch.tensor([1.0, 1.0]).double(), {Site(0): torch.tensor([1.0, 0.0])}, 1.0, 1.0)
    weak = Wish(torch.tensor([1.0, 1.001]).double(), {Site(0): torch.tensor([-1.0, 0.0])}, 0.5, 0.5, cap=0.1)
    h = {Neuron(0, 0): 1.0, Neuron(0, 1): 1.0}
    delta = least_change([firm, weak], h)
    assert weak.weight == 0.1
    assert abs(granted(firm, h, delta) - 1.0) < 1e-6
    assert weak.granted(-5.0), "all is done for it"


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 8))
def test_multipliers_meet_the_conditions_of_the_optimum(seed: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, n + 2, generator=g).double()
    gram, b, caps = x @ x.T, torch.randn(n, generator=g).double(), [float(c) for c in torch.rand(n, generator=g)]
    a = multipliers(gram, b, caps)
    slope = b - gram @ a
    for value, rising, cap in zip(a.tolist(), slope.tolist(), caps, strict=True):
        assert 0 <= value <= cap
        assert value > 0 or rising < 1e-4
        assert value == cap or rising < 1e-4
        assert value in (0, cap) or abs(rising) < 1e-4
