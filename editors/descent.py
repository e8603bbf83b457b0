"""Algorithm 1's descent on o · (Δw·v0 − Δw·v1) + β · ‖Δw‖, in closed form and step by step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Penalty = Literal["l2", "squared_l2"]


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
    return descended(o[..., None] * (v0 - v1), lr, epochs, beta, penalty)


def gradient_descent(
    o: Tensor, v0: Tensor, v1: Tensor, lr: float, epochs: int, beta: float, penalty: Penalty = "l2"
) -> Tensor:
    """Algorithm 1 step by step with autograd; the reference for `closed_form`, with the same arguments and result."""
    return descend(o[..., None] * (v0 - v1), lr, epochs, beta, penalty)


def descended(g: Tensor, lr: float, epochs: int, beta: float, penalty: Penalty = "l2") -> Tensor:
    """Where descent on g·Δw + β‖Δw‖ ends, for each row; a neuron of several swaps has the sum of their gradients.

    Args:
        g: gradient of the loss without its penalty, `[k, d_model]` or `[d_model]`.
        lr: step size.
        epochs: number of steps, ε.
        beta: weight of the penalty.
        penalty: as for `closed_form`.

    Returns:
        Δw, as g.
    """
    size = g.norm(dim=-1, keepdim=True)
    if penalty == "squared_l2":
        return -g * lr * _geometric_sum(2 * lr * beta, epochs)
    climbed = size + (epochs - 1) * (size - beta)
    around = torch.remainder(climbed + (beta - size), 2 * beta) - (beta - size)
    r = lr * torch.where(size >= beta, climbed, around)
    return torch.where(size > 0, -r * g / size, 0)


def _geometric_sum(x: float, n: int) -> float:
    """Σ (1 − x)^k for k below n, exact for tiny x too."""
    if x == 0:
        return n
    return -math.expm1(n * math.log1p(-x)) / x if x < 1 else (1 - (1 - x) ** n) / x


def descend(g: Tensor, lr: float, epochs: int, beta: float, penalty: Penalty = "l2") -> Tensor:
    """The same as `descended`, step by step with autograd."""
    delta = torch.zeros_like(g).requires_grad_()
    for _ in range(epochs):
        norm = delta.norm(dim=-1) if penalty == "l2" else delta.square().sum(-1)
        (gradient,) = torch.autograd.grad((g * delta).sum() + beta * norm.sum(), delta)
        with torch.no_grad():
            delta -= lr * gradient
    return delta.detach()


SOLVERS = {"closed_form": descended, "gradient_descent": descend}
